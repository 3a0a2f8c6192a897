-- Whoever has a manual task is told of it, reminded, and told when its due date has
-- passed.

-- +goose Up

-- Which chain of deadline jobs counts: the last assignment's. A job of an earlier one
-- ends without doing anything. Null before the first, and for every other type.
ALTER TABLE task ADD COLUMN deadline_id bigint;

-- What one person was told, or why not. The id is also that of the job which sends it.
-- Settled ones are kept for 30 days.
CREATE TABLE notice (
    notice_id bigint PRIMARY KEY,
    task_id uuid NOT NULL,
    deadline_id bigint NOT NULL,
    at timestamptz NOT NULL DEFAULT now(),
    settled_at timestamptz,
    tries integer NOT NULL DEFAULT 0,
    percent smallint NOT NULL,
    what text NOT NULL,
    outcome text NOT NULL DEFAULT 'waiting',
    user_id text NOT NULL,
    channel text,
    detail text,
    CONSTRAINT what_is_known CHECK (what IN ('assigned', 'reminder', 'overdue', 'escalated')),
    CONSTRAINT outcome_is_known CHECK (outcome IN ('waiting', 'sent', 'refused', 'moot', 'off')),
    CONSTRAINT settled_when_not_waiting CHECK ((settled_at IS NULL) = (outcome = 'waiting')),
    CONSTRAINT sent_by_a_channel CHECK ((channel IS NOT NULL) = (outcome = 'sent'))
);
CREATE INDEX notice_task ON notice (task_id);
CREATE INDEX notice_settled_at ON notice (settled_at);

CREATE VIEW report.notice AS
SELECT
    n.notice_id, n.task_id, n.what, n.percent, n.user_id, n.outcome, n.channel, n.tries, n.detail, n.at, n.settled_at
FROM notice n;
COMMENT ON VIEW report.notice IS 'What people were told of their tasks in the last 30 days, by which channel, or why not.';
COMMENT ON COLUMN report.notice.notice_id IS 'the notice; its job in river_job has the same id';
COMMENT ON COLUMN report.notice.task_id IS 'the task';
COMMENT ON COLUMN report.notice.what IS 'assigned, reminder, overdue (to whoever has the task) or escalated (to those whom the definition names)';
COMMENT ON COLUMN report.notice.percent IS 'how much of the time to the due date was over';
COMMENT ON COLUMN report.notice.user_id IS 'who was to be told';
COMMENT ON COLUMN report.notice.outcome IS 'waiting, sent, refused (by every channel), moot (the task had gone on), off (there is no Notification Service)';
COMMENT ON COLUMN report.notice.channel IS 'by which it was sent';
COMMENT ON COLUMN report.notice.tries IS 'how often it was tried, all channels each time';
COMMENT ON COLUMN report.notice.detail IS 'what came of the last try';
COMMENT ON COLUMN report.notice.at IS 'when it was due to be told';
COMMENT ON COLUMN report.notice.settled_at IS 'when that ended; null while it waits';

-- +goose Down
DROP VIEW report.notice;
DROP TABLE notice;
ALTER TABLE task DROP COLUMN deadline_id;

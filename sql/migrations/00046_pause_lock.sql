-- A resume waits its turn: statements that hold jobs back no longer overtake it.

-- +goose Up

-- A lock, and no data: the table stays empty. Statements that hold jobs back lock it in ROW SHARE
-- mode, beside each other; the resume of a definition or a task locks it in EXCLUSIVE mode.
-- PostgreSQL grants locks on a table in the order of the requests. A lock on a row is granted to
-- everybody whom the holders let in, and a resume that waits for one may wait for ever. Unlike
-- an advisory lock, which whoever may connect can take, it takes a right on the table.
CREATE TABLE pause_lock (
    never boolean NOT NULL,
    CONSTRAINT stays_empty CHECK (NOT never AND never)
);

-- +goose StatementBegin
CREATE FUNCTION pause_lock_exclusive() RETURNS void LANGUAGE plpgsql AS $$
BEGIN
    LOCK TABLE pause_lock IN EXCLUSIVE MODE;
END
$$;
-- +goose StatementEnd

-- +goose Down
DROP FUNCTION pause_lock_exclusive();
DROP TABLE pause_lock;

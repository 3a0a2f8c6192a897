package pgpool

import (
	"fmt"
	"strings"
)

// setting is one of the server's that our sessions, or our transactions, run with.
type setting struct{ name, value string }

// settings are what a pool needs, whichever way they are brought: with the start of a
// session, or, behind a pooler that hands out sessions by the transaction, with each
// transaction.
func (cfg Config) settings() []setting {
	all := []setting{
		{"statement_timeout", fmt.Sprint(cfg.StatementTimeout.Milliseconds())},
		{"idle_in_transaction_session_timeout", "60000"},
	}
	if cfg.LockTimeout > 0 {
		all = append(all, setting{"lock_timeout", fmt.Sprint(cfg.LockTimeout.Milliseconds())})
	}
	if cfg.Engine {
		all = append(all,
			setting{"tes.actor", "engine"},
			setting{"plan_cache_mode", "force_generic_plan"},
			setting{"enable_hashjoin", "off"},
			setting{"enable_mergejoin", "off"},
			setting{"enable_seqscan", "off"},
			setting{"max_parallel_workers_per_gather", "0"},
			setting{"jit", "off"},
		)
	}
	if cfg.Custom {
		all = append(all, setting{"plan_cache_mode", "force_custom_plan"})
	}
	return all
}

// local is a statement that makes settings for the rest of a transaction.
func local(all []setting) string {
	calls := make([]string, len(all))
	for i, one := range all {
		calls[i] = "set_config('" + one.name + "', '" + one.value + "', true)"
	}
	return "SELECT " + strings.Join(calls, ", ")
}

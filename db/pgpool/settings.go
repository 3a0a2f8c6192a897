package pgpool

import (
	"fmt"
	"strings"
)

// setting is one server setting of a session or a transaction.
type setting struct{ name, value string }

// settings returns the settings that a pool needs. Open sends the settings at the start of
// each session, Pooled at the start of each transaction.
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

// local returns a statement that makes the settings for the rest of a transaction.
func local(all []setting) string {
	calls := make([]string, len(all))
	for i, one := range all {
		calls[i] = "set_config('" + one.name + "', '" + one.value + "', true)"
	}

	return "SELECT " + strings.Join(calls, ", ")
}

package main

import (
	"context"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/seed-3f7a0631/tes/api/peer/spans"
)

// startTracing starts tracing if there is a receiver of spans.
func (s *service) startTracing(ctx context.Context, process string) error {
	cfg := s.cfg

	// s.spans stays nil, and every method of nil spans does nothing.
	if cfg.otel["OTEL_SDK_DISABLED"] == "true" {
		return nil
	}

	// A number that is not set is 0, and package spans takes its default.
	config := spans.Config{
		OTLP: cfg.otlp(), Sampled: cfg.otel["OTEL_TRACES_SAMPLER"] != "",
		Version: version(), Instance: process, Logger: s.log, Queue: cfg.otelNumber("OTEL_BSP_MAX_QUEUE_SIZE"),
		Delay:   time.Duration(cfg.otelNumber("OTEL_BSP_SCHEDULE_DELAY")) * time.Millisecond,
		Timeout: time.Duration(cfg.otelNumber("OTEL_BSP_EXPORT_TIMEOUT")) * time.Millisecond,
	}

	if url := cfg.orElse(cfg.Observability); url != "" && url != "off" {
		there, err := s.newPeers("observability", url) // untraced, because s.spans is still nil: a span of an export would cause another export
		if err != nil {
			return err
		}
		config.Observability = there.Tracing
		s.breakers = append(s.breakers, there.Tracing.Breaker())
	}

	var err error
	if s.spans, err = spans.New(ctx, config); err != nil {
		return err
	}

	s.onStop(s.spans.Close)
	return nil
}

// otlp returns whether spans are exported to a collector: if one is named and not switched off.
func (c Config) otlp() bool {
	switch c.otel["OTEL_TRACES_EXPORTER"] {
	case "otlp":
		return true
	case "none":
		return false
	}
	return c.otel["OTEL_EXPORTER_OTLP_ENDPOINT"] != "" || c.otel["OTEL_EXPORTER_OTLP_TRACES_ENDPOINT"] != ""
}

func (c *Config) setOTel(name, text string) {
	if c.otel == nil {
		c.otel = map[string]string{}
	}
	c.otel[name] = strings.TrimSpace(text)
}

// parseOTel refuses unsupported values, and values that OpenTelemetry would silently ignore.
func (c Config) parseOTel() (wrong []error) {
	for name, known := range map[string][]string{
		"OTEL_SDK_DISABLED":                  {"true", "false"},
		"OTEL_TRACES_EXPORTER":               {"otlp", "none"},
		"OTEL_EXPORTER_OTLP_PROTOCOL":        {"http/protobuf", "http/json"},
		"OTEL_EXPORTER_OTLP_TRACES_PROTOCOL": {"http/protobuf", "http/json"},
		"OTEL_TRACES_SAMPLER": {
			"always_on", "always_off", "traceidratio", "parentbased_always_on", "parentbased_always_off", "parentbased_traceidratio",
		},
	} {
		if text := c.otel[name]; text != "" && !slices.Contains(known, text) {
			wrong = append(wrong, fmt.Errorf("%s: %q is none of %s", name, text, strings.Join(known, ", ")))
		}
	}

	for _, name := range []string{"OTEL_BSP_MAX_QUEUE_SIZE", "OTEL_BSP_SCHEDULE_DELAY", "OTEL_BSP_EXPORT_TIMEOUT"} {
		if text := c.otel[name]; text != "" && c.otelNumber(name) <= 0 {
			wrong = append(wrong, fmt.Errorf("%s: %q is not a number above 0", name, text))
		}
	}

	return wrong
}

func (c Config) otelNumber(name string) int {
	n, _ := strconv.Atoi(c.otel[name])
	return n
}

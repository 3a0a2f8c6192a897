package main

import (
	"bytes"
	"encoding/json"
	"fmt"

	"github.com/seed-3f7a0631/tes/sql/migrations"
)

// migrateCmd changes the database's schema.
type migrateCmd struct {
	Up     migrateUpCmd     `cmd:"" help:"Apply the missing steps. Safe while the service runs, and when two processes migrate at once."`
	Down   migrateDownCmd   `cmd:"" help:"Revert the newest step. The data in its tables and columns is lost."`
	Status migrateStatusCmd `cmd:"" help:"List the steps, and whether each is applied."`
}

type migrateUpCmd struct{}

// Run applies the missing steps.
func (migrateUpCmd) Run(s *cmdContext) error {
	if err := needsDatabase(s); err != nil {
		return err
	}
	if err := migrations.Up(s.ctx, s.cfg.direct()); err != nil {
		return err
	}
	s.printf("The schema is up to date.\n")
	return nil
}

type migrateDownCmd struct {
	Yes bool `help:"Confirm the loss of the data."`
}

// Run reverts one step.
func (c migrateDownCmd) Run(s *cmdContext) error {
	if err := needsDatabase(s); err != nil {
		return err
	}

	if !c.Yes {
		return &usageError{"reverting a step deletes the data in its tables and columns: confirm with --yes"}
	}

	// A single step: each step back drops columns or tables with their rows.
	step, err := migrations.Down(s.ctx, s.cfg.direct())
	if err != nil {
		return err
	}

	if step == nil {
		s.printf("There was no step to revert.\n")
		return nil
	}

	s.printf("Reverted: %d %s\n", step.Version, step.Name)
	return nil
}

type migrateStatusCmd struct {
	JSON bool `name:"json" help:"Print JSON."`
}

// Run lists the steps.
func (c migrateStatusCmd) Run(s *cmdContext) error {
	if err := needsDatabase(s); err != nil {
		return err
	}

	steps, err := migrations.Status(s.ctx, s.cfg.direct())
	if err != nil {
		return err
	}
	if c.JSON {
		return printJSON(s, steps)
	}

	for _, step := range steps {
		mark := "missing"
		if step.Applied {
			mark = "applied"
		}
		s.printf("%s  %5d  %s\n", mark, step.Version, step.Name)
	}

	return nil
}

func needsDatabase(s *cmdContext) error {
	if s.cfg.DatabaseURL == "" {
		return &usageError{"TES_DATABASE_URL is not set: name the database, such as postgres://tes@db.internal/tes"}
	}
	return nil
}

func printJSON(s *cmdContext, v any) error {
	text, err := indented(v)
	if err != nil {
		return fmt.Errorf("print: %w", err)
	}
	s.printf("%s", text)
	return nil
}

// indented encodes JSON without escaping & and <, so that addresses stay readable.
func indented(v any) ([]byte, error) {
	var text bytes.Buffer
	encoder := json.NewEncoder(&text)
	encoder.SetEscapeHTML(false)
	encoder.SetIndent("", "  ")
	err := encoder.Encode(v)
	return text.Bytes(), err
}

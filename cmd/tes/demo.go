package main

import (
	"context"

	"github.com/seed-3f7a0631/tes/cmd/tes/demo"
)

// demoCmd is tes demo.
type demoCmd struct{ demo.Options }

// Run starts everything in a throw-away directory and runs the demo.
func (c *demoCmd) Run(s *cmdContext) error {
	s.cfg.TLSCert, s.cfg.TLSKey, s.cfg.TLSClientCA = "", "", "" // the demo calls its own service, at an address of loopback

	// Any free ports, so that the demo runs beside a tes dev.
	return demo.Run(s.ctx, c.Options, demo.Env{
		Stdout: s.stdout, Color: terminal(s.stdout),
		PrintJSON: func(v any) error { return printJSON(s, v) },
		Start: func(context.Context) (*demo.System, error) {
			l, err := startLocal(s, localConfig{dataDir: s.cfg.DataDir, throwaway: true, http: "127.0.0.1:0", nats: "127.0.0.1:0", owner: "tes demo"})
			if err != nil {
				return nil, err
			}
			return &demo.System{URL: l.service.url, Bus: l.bus, Peers: l.peers, Stop: l.stop}, nil
		},
	})
}

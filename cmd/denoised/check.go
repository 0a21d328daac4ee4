package main

import (
	"encoding/json"
	"fmt"
	"text/tabwriter"

	"github.com/spf13/cobra"

	"github.com/diffdenoise/denoised/daemon"
)

func newCheckCmd() *cobra.Command {
	var config string
	var asJSON bool
	cmd := &cobra.Command{
		Use:   "check --config FILE",
		Short: "Try configuration, ports, disk, model, GPU and every destination",
		Long: `Try everything the configuration names: ports, disk, state folder, model, GPU,
hot folders, and a C-ECHO to every destination. Run it as the service's account;
it can be run beside the daemon. Exit code 1 if anything fails.`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			cfg, err := daemon.LoadConfig(config)
			var findings []daemon.Finding
			if err != nil {
				findings = []daemon.Finding{{What: "configuration", Outcome: daemon.Bad, Detail: err.Error()}}
			} else {
				findings = daemon.Check(cmd.Context(), cfg, workerProgram())
			}
			failed := 0
			for _, f := range findings {
				if f.Outcome == daemon.Bad {
					failed++
				}
			}
			out := cmd.OutOrStdout()
			if asJSON {
				e := json.NewEncoder(out)
				e.SetIndent("", "  ")
				if err := e.Encode(struct {
					OK       bool             `json:"ok"`
					Findings []daemon.Finding `json:"findings"`
				}{failed == 0, findings}); err != nil {
					return err
				}
			} else {
				t := tabwriter.NewWriter(out, 0, 0, 2, ' ', 0)
				for _, f := range findings {
					fmt.Fprintf(t, "%s\t%s\t%s\n", f.Outcome, f.What, f.Detail)
				}
				if err := t.Flush(); err != nil {
					return err
				}
			}
			if failed > 0 {
				return fmt.Errorf("check: %d of %d failed", failed, len(findings))
			}
			return nil
		},
	}
	cmd.Flags().StringVar(&config, "config", "", "configuration file (required)")
	cmd.Flags().BoolVar(&asJSON, "json", false, "print JSON")
	return required(cmd, "config")
}

package main

import (
	"encoding/json"
	"fmt"
	"text/tabwriter"

	"github.com/spf13/cobra"

	"github.com/diffdenoise/denoised/kernels/cpu"
	"github.com/diffdenoise/denoised/models"
)

func newModelCmd() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "model",
		Short: "List, show and verify models",
		Long: `List, show and verify models.

A model is "default", which is built in, or a folder with weights.safetensors
and card.json.`,
	}
	cmd.AddCommand(newModelListCmd(), newModelShowCmd(), newModelVerifyCmd())
	return cmd
}

func newModelListCmd() *cobra.Command {
	var (
		dir    string
		asJSON bool
	)
	cmd := &cobra.Command{
		Use:   "list",
		Short: "List the built-in model and those in a folder",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			list, err := models.List(dir)
			if err != nil {
				return err
			}
			if asJSON {
				type item struct {
					Open  string       `json:"open"`
					Card  *models.Card `json:"card,omitempty"`
					Error string       `json:"error,omitempty"`
				}
				items := []item{}
				for _, e := range list {
					if e.Err != nil {
						items = append(items, item{Open: e.Open, Error: e.Err.Error()})
					} else {
						items = append(items, item{Open: e.Open, Card: &e.Card})
					}
				}
				return printModelJSON(cmd, items)
			}
			t := tabwriter.NewWriter(cmd.OutOrStdout(), 0, 0, 2, ' ', 0)
			fmt.Fprintln(t, "MODEL\tNAME\tVERSION\tPARAMETERS\tWEIGHTS SHA-256")
			for _, e := range list {
				if e.Err != nil {
					fmt.Fprintf(t, "%s\t%v\t\t\t\n", e.Open, e.Err)
					continue
				}
				fmt.Fprintf(t, "%s\t%s\t%s\t%d\t%.16s\n", e.Open, e.Card.Name, e.Card.Version, e.Card.Parameters, e.Card.WeightsSHA256)
			}
			return t.Flush()
		},
	}
	cmd.Flags().StringVar(&dir, "dir", "", "folder whose subfolders are models")
	cmd.Flags().BoolVar(&asJSON, "json", false, "print JSON")
	return cmd
}

func newModelShowCmd() *cobra.Command {
	return &cobra.Command{
		Use:   "show [MODEL]",
		Short: "Print the card of a model: architecture, training data, licence, scores",
		Args:  cobra.MaximumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			m, err := models.Open(modelArgument(args))
			if err != nil {
				return err
			}
			return printModelJSON(cmd, m.Card)
		},
	}
}

func newModelVerifyCmd() *cobra.Command {
	return &cobra.Command{
		Use:   "verify [MODEL]",
		Short: "Check a model's weights against its card and its golden vectors",
		Long: `Check a model's weights against its card and its golden vectors.

The hash of the weights must be the one on the card. Golden vectors are computed
with every instruction set of this machine and must agree to a relative error of
1e-5. A model folder without golden.safetensors has its hash checked only.`,
		Args: cobra.MaximumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			name := modelArgument(args)
			for _, isa := range cpu.ISAs() {
				backend, err := cpu.New(isa)
				if err != nil {
					return err
				}
				m, err := models.OpenOn(backend, name)
				if err != nil {
					return err
				}
				v, err := m.Verify()
				if err != nil {
					return err
				}
				golden := "no golden vectors"
				if v.Golden {
					golden = fmt.Sprintf("golden vectors agree to %.2g", v.GoldenError)
				}
				fmt.Fprintf(cmd.OutOrStdout(), "%s %s on %s: weights %.16s match the card, %s\n", m.Name(), m.Version(), backend.Name(), v.Hash, golden)
			}
			return nil
		},
	}
}

// modelArgument is the optional name of a model.
func modelArgument(args []string) string {
	if len(args) == 0 {
		return models.DefaultName
	}
	return args[0]
}

func printModelJSON(cmd *cobra.Command, v any) error {
	e := json.NewEncoder(cmd.OutOrStdout())
	e.SetIndent("", "  ")
	return e.Encode(v)
}

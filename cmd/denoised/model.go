package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"path/filepath"
	"strings"
	"text/tabwriter"

	"github.com/spf13/cobra"

	"github.com/diffdenoise/denoised/kernels/cpu"
	"github.com/diffdenoise/denoised/models"
	"github.com/diffdenoise/denoised/models/store"
)

// modelsDir is where models are installed if --dir does not say otherwise: under
// the state_dir of the configuration that packages bring.
const modelsDir = "/var/lib/denoised/models"

// findModel returns what models.Open takes for the argument of --model.
func findModel(nameOrDir string) string { return store.Find(nameOrDir, modelsDir) }

func newModelCmd() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "model",
		Short: "List, show, verify and install models",
		Long: `List, show, verify and install models.

A model is "default" (MR) or "radiograph" (CR, DX), which are built in, the name
of an installed one, or a folder with weights.safetensors and card.json, and with bsn.safetensors and
diffusion.safetensors if it has the networks for quality high.`,
	}
	cmd.AddCommand(newModelListCmd(), newModelShowCmd(), newModelVerifyCmd(), newModelInstallCmd())
	return cmd
}

func newModelListCmd() *cobra.Command {
	var (
		dir    string
		asJSON bool
	)
	cmd := &cobra.Command{
		Use:   "list",
		Short: "List the built-in models and those that are installed",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if !cmd.Flags().Changed("dir") && !isFolder(dir) {
				dir = "" // nothing was ever installed
			}
			list, err := store.List(dir)
			if err != nil {
				return err
			}
			if asJSON {
				type item struct {
					Open  string      `json:"open"`
					Card  *store.Card `json:"card,omitempty"`
					Error string      `json:"error,omitempty"`
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
			fmt.Fprintln(t, "MODEL\tNAME\tVERSION\tNETWORKS\tPARAMETERS\tWEIGHTS SHA-256")
			for _, e := range list {
				if e.Err != nil {
					fmt.Fprintf(t, "%s\t%v\t\t\t\t\n", e.Open, e.Err)
					continue
				}
				fmt.Fprintf(t, "%s\t%s\t%s\t%s\t%d\t%.16s\n", e.Open, e.Card.Name, e.Card.Version, strings.Join(e.Card.Networks(), " "), e.Card.Parameters, e.Card.WeightsSHA256)
			}
			return t.Flush()
		},
	}
	cmd.Flags().StringVar(&dir, "dir", modelsDir, "folder whose subfolders are models")
	cmd.Flags().BoolVar(&asJSON, "json", false, "print JSON")
	return cmd
}

func newModelShowCmd() *cobra.Command {
	return &cobra.Command{
		Use:   "show [MODEL]",
		Short: "Print the card of a model: architecture, training data, licence, scores",
		Args:  cobra.MaximumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			m, err := models.Open(findModel(modelArgument(args)))
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
		Short: "Check a model's files against its card and its golden vectors",
		Long: `Check a model's files against its card and its golden vectors.

The hash of every file must be the one on the card. Golden vectors are computed
with every instruction set of this machine and must agree to a relative error of
1e-5; a student, of 1e-2 where it multiplies bf16 numbers. A network without golden vectors has its hash checked only.`,
		Args: cobra.MaximumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			name := findModel(modelArgument(args))
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
				for _, n := range v.Networks {
					golden := "no golden vectors"
					if n.Golden {
						golden = fmt.Sprintf("golden vectors agree to %.2g", n.GoldenError)
					}
					fmt.Fprintf(cmd.OutOrStdout(), "%s %s on %s: %s weights %.16s match the card, %s\n", m.Name(), m.Version(), backend.Name(), n.Network, n.Hash, golden)
				}
			}
			return nil
		},
	}
}

func newModelInstallCmd() *cobra.Command {
	var (
		dir, name string
		force     bool
	)
	cmd := &cobra.Command{
		Use:   "install DIR [--as NAME]",
		Short: "Verify a model and copy it to where the service finds it by name",
		Long: `Verify a model and copy it to where the service finds it by name.

DIR is a folder that denoised train made, or any other with a card. The copy
appears under --dir when it is complete and verified. With "denoise: {model:
NAME}" in the configuration, or {radiograph_model: NAME} for images of CR and DX,
the service uses it, for which --dir must be the
folder models in its state_dir.`,
		Example: `  sudo denoised model install trained/model --as knee-3t
  sudo denoised model install trained/model --as knee-3t --force`,
		Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			if name != "" {
				if err := store.CheckName(name); err != nil {
					return usagef("model install: --as: %v", err)
				}
			}
			m, err := store.Install(args[0], dir, name, force)
			if errors.Is(err, fs.ErrExist) {
				return fmt.Errorf("%w; choose another name with --as, or replace it with --force", err)
			}
			if err != nil {
				return err
			}
			if name == "" {
				name = m.Name()
			}
			_, err = fmt.Fprintf(cmd.OutOrStdout(), "%s %s is installed as %s: %s\n", m.Name(), m.Version(), name, filepath.Join(dir, name))
			return err
		},
	}
	f := cmd.Flags()
	f.StringVar(&name, "as", "", "name to install it under (default: the one on its card)")
	f.StringVar(&dir, "dir", modelsDir, "folder of installed models")
	f.BoolVar(&force, "force", false, "replace a model of that name")
	return cmd
}

// modelArgument is the optional name of a model.
func modelArgument(args []string) string {
	if len(args) == 0 {
		return store.DefaultName
	}
	return args[0]
}

func printModelJSON(cmd *cobra.Command, v any) error {
	e := json.NewEncoder(cmd.OutOrStdout())
	e.SetIndent("", "  ")
	return e.Encode(v)
}

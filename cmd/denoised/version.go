package main

import (
	"encoding/json"
	"fmt"
	"runtime"
	"runtime/debug"

	"github.com/spf13/cobra"

	"github.com/diffdenoise/denoised/models"
)

// build is what this program was made from.
type build struct {
	Version  string `json:"version"` // of the tag, or made from the commit; "devel" without version control
	Revision string `json:"revision,omitempty"`
	Modified bool   `json:"modified,omitempty"` // with changes that are not committed
	Time     string `json:"time,omitempty"`     // of the commit
	Go       string `json:"go"`
	Platform string `json:"platform"`
	CUDA     bool   `json:"cuda"` // can use a GPU
}

func thisBuild() build {
	b := build{Version: "devel", Go: runtime.Version(), Platform: runtime.GOOS + "/" + runtime.GOARCH, CUDA: hasCUDA}
	info, ok := debug.ReadBuildInfo()
	if !ok {
		return b
	}
	if v := info.Main.Version; v != "" && v != "(devel)" {
		b.Version = v
	}
	for _, s := range info.Settings {
		switch s.Key {
		case "vcs.revision":
			b.Revision = s.Value
		case "vcs.modified":
			b.Modified = s.Value == "true"
		case "vcs.time":
			b.Time = s.Value
		}
	}
	return b
}

func newVersionCmd() *cobra.Command {
	var asJSON bool
	cmd := &cobra.Command{
		Use:   "version",
		Short: "Print version, build and built-in model",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			b := thisBuild()
			m, err := models.Default()
			if err != nil {
				return err
			}
			out := cmd.OutOrStdout()
			if asJSON {
				type model struct {
					Name    string `json:"name"`
					Version string `json:"version"`
					SHA256  string `json:"sha256"`
				}
				e := json.NewEncoder(out)
				e.SetIndent("", "  ")
				return e.Encode(struct {
					build
					Model model `json:"model"`
				}{b, model{m.Name(), m.Version(), m.Hash()}})
			}
			fmt.Fprintf(out, "denoised %s\n", b.Version)
			if b.Revision != "" {
				changed := ""
				if b.Modified {
					changed = ", with uncommitted changes"
				}
				fmt.Fprintf(out, "commit %s of %s%s\n", b.Revision, b.Time, changed)
			}
			with := ""
			if b.CUDA {
				with = ", with CUDA"
			}
			fmt.Fprintf(out, "%s %s%s\n", b.Go, b.Platform, with)
			fmt.Fprintf(out, "model %s %s, all networks SHA-256 %s\n", m.Name(), m.Version(), m.Hash())
			fmt.Fprintln(out, "Research use only: not a medical device.")
			return nil
		},
	}
	cmd.Flags().BoolVar(&asJSON, "json", false, "print JSON")
	return cmd
}

package main

import (
	"fmt"
	"net/http"
	"net/url"

	"github.com/spf13/cobra"

	"github.com/diffdenoise/denoised/daemon/web"
)

func newRetryCmd() *cobra.Command {
	var where daemonAddress
	cmd := &cobra.Command{
		Use:   "retry SERIES_UID",
		Short: "Send the images of a series again that a destination had refused",
		Args:  cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			base, err := where.base()
			if err != nil {
				return err
			}
			// The first question tells a daemon that is not there from a series that is not.
			var status web.Status
			if err := ask(cmd.Context(), http.MethodGet, base+"/readyz", &status); err != nil {
				return fmt.Errorf("retry: %w", notRunning(base, err))
			}
			var answer web.Retried
			if err := ask(cmd.Context(), http.MethodPost, base+"/api/series/"+url.PathEscape(args[0])+"/retry", &answer); err != nil {
				return fmt.Errorf("retry series %s: %w (denoised status lists the series)", args[0], err)
			}
			fmt.Fprintf(cmd.OutOrStdout(), "%d images wait again\n", answer.Queued)
			return nil
		},
	}
	where.flags(cmd)
	return cmd
}

package main

import (
	"context"
	"fmt"
	"time"

	"github.com/spf13/cobra"

	"github.com/diffdenoise/denoised/dicomnet"
)

// Defaults of echo and send: what a scanner would be told to use.
const (
	defaultCalling = "DENOISED"
	defaultCalled  = "DENOISE"
)

func newEchoCmd() *cobra.Command {
	var aet, aec string
	var timeout time.Duration
	cmd := &cobra.Command{
		Use:   "echo HOST:PORT",
		Short: "Ask a DICOM peer whether it answers (C-ECHO)",
		Args:  cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			if err := checkAddress(args[0]); err != nil {
				return err
			}
			if err := checkAETitles(aet, aec); err != nil {
				return err
			}
			ctx, cancel := context.WithTimeout(cmd.Context(), timeout)
			defer cancel()
			began := time.Now()
			d := dicomnet.Dialer{CallingAETitle: aet, CalledAETitle: aec}
			a, err := d.Dial(ctx, args[0], []dicomnet.PresentationContext{{AbstractSyntax: dicomnet.VerificationSOPClass,
				TransferSyntaxes: []string{dicomnet.ImplicitVRLittleEndian, dicomnet.ExplicitVRLittleEndian}}})
			if err != nil {
				return fmt.Errorf("echo: %w", err)
			}
			status, err := a.Echo(ctx)
			if err != nil {
				return fmt.Errorf("echo %s: %w", args[0], err)
			}
			if err := a.Release(ctx); err != nil {
				return fmt.Errorf("echo %s: %w", args[0], err)
			}
			if !status.IsSuccess() {
				return fmt.Errorf("echo %s: the peer answered %v", args[0], status)
			}
			fmt.Fprintf(cmd.OutOrStdout(), "%s (%s) answers: %v in %v\n", args[0], aec, status, time.Since(began).Round(time.Millisecond))
			return nil
		},
	}
	cmd.Flags().StringVar(&aet, "aet", defaultCalling, "calling AE title (ours)")
	cmd.Flags().StringVar(&aec, "aec", defaultCalled, "called AE title (the peer's)")
	cmd.Flags().DurationVar(&timeout, "timeout", 30*time.Second, "for the whole of it")
	return cmd
}

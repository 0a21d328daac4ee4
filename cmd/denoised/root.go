package main

import (
	"github.com/spf13/cobra"
)

func newRootCmd() *cobra.Command {
	root := &cobra.Command{
		Use:   "denoised",
		Short: "Denoise MR series between scanner and archive",
		Long: `denoised sits beside an MRI scanner: it receives every series by DICOM C-STORE,
stores each slice durably, denoises it while the next one arrives, and forwards
the derived series, and the original if wanted, to the archive.

Research use only: not a medical device.

Start with "denoised demo": everything in one process, with a made-up scanner
and archive.`,
		SilenceUsage:  true,
		SilenceErrors: true,
		Version:       thisBuild().Version,
	}
	root.AddCommand(
		newDemoCmd(), newServeCmd(), newCheckCmd(), newStatusCmd(), newFlagCmd(), newRetryCmd(),
		newEchoCmd(), newSendCmd(), newVersionCmd(),
		newDenoiseCmd(), newEvalCmd(), newTrainCmd(), newBenchCmd(), newModelCmd(), newServiceCmd(), newWorkerCmd(),
	)
	return root
}

// prepare makes mistakes in the command line distinguishable from failures: the
// result is true once a command has begun to run.
func prepare(root *cobra.Command) *bool {
	entered := new(bool)
	var visit func(cmd *cobra.Command)
	visit = func(cmd *cobra.Command) {
		for _, sub := range cmd.Commands() {
			visit(sub)
		}
		run := cmd.RunE
		switch {
		case run != nil:
			cmd.RunE = func(cmd *cobra.Command, args []string) error {
				*entered = true
				return run(cmd, args)
			}
		case cmd != root && cmd.Run == nil && cmd.HasSubCommands():
			// Cobra shows the help of such a command and calls it a success.
			cmd.RunE = func(cmd *cobra.Command, args []string) error {
				if len(args) > 0 {
					return usagef("unknown command %q for %q", args[0], cmd.CommandPath())
				}
				return usagef("%q needs one of its commands", cmd.CommandPath())
			}
		}
	}
	visit(root)
	return entered
}

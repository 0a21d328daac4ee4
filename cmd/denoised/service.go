package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"

	"github.com/spf13/cobra"

	"github.com/diffdenoise/denoised/internal/atomicfile"
	"github.com/diffdenoise/denoised/packaging"
)

// localBinary is where `service install` puts the program: the place for what
// no package manager owns, and one that the unit's sandbox can see.
const localBinary = "/usr/local/bin/denoised"

func newServiceCmd() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "service",
		Short: "Install, remove or look at the systemd service",
		Long: `Install, remove or look at the systemd service.

For machines where denoised came as a bare program. The .deb and .rpm packages
bring the same unit, account and configuration by themselves.`,
	}
	var root string
	cmd.PersistentFlags().StringVar(&root, "root", "", "work on the system below this folder and run nothing (for images and tests)")

	installer := func(cmd *cobra.Command) *serviceInstaller {
		return &serviceInstaller{root: root, cuda: hasCUDA, out: cmd.OutOrStdout(), run: runCommand}
	}
	cmd.AddCommand(
		&cobra.Command{
			Use:   "install",
			Short: "Put the program, the unit, the account and, if there is none, the default configuration in place",
			Args:  cobra.NoArgs,
			RunE: func(cmd *cobra.Command, _ []string) error {
				program, err := os.Executable()
				if err != nil {
					return fmt.Errorf("install service: find own program: %w", err)
				}
				return installer(cmd).install(cmd.Context(), program)
			},
		},
		&cobra.Command{
			Use:   "uninstall",
			Short: "Stop the service and remove it; configuration and images stay",
			Args:  cobra.NoArgs,
			RunE: func(cmd *cobra.Command, _ []string) error {
				return installer(cmd).uninstall(cmd.Context())
			},
		},
		&cobra.Command{
			Use:   "status",
			Short: "What is installed and whether it runs",
			Args:  cobra.NoArgs,
			RunE: func(cmd *cobra.Command, _ []string) error {
				return installer(cmd).status(cmd.Context())
			},
		},
	)
	return cmd
}

// serviceInstaller works on the system below root. With a root other than "" it
// only handles files: no account is made and systemd is not told.
type serviceInstaller struct {
	root string
	cuda bool // the program can use a GPU, for which the service must be allowed more
	out  io.Writer
	run  func(ctx context.Context, name string, args ...string) ([]byte, error)
}

// runCommand returns what a program printed. Its error carries the last line of
// that, which is where systemd's tools say what went wrong.
func runCommand(ctx context.Context, name string, args ...string) ([]byte, error) {
	out, err := exec.CommandContext(ctx, name, args...).CombinedOutput()
	if err != nil {
		lines := strings.Split(strings.TrimSpace(string(out)), "\n")
		return out, fmt.Errorf("%s %s: %w: %s", name, strings.Join(args, " "), err, lines[len(lines)-1])
	}
	return out, nil
}

func (s *serviceInstaller) path(p string) string { return filepath.Join(s.root, p) }

// mayChange tells why this machine or this user cannot install a service.
func (s *serviceInstaller) mayChange() error {
	if s.root != "" {
		return nil
	}
	if err := s.hasSystemd(); err != nil {
		return err
	}
	if os.Geteuid() != 0 {
		return errors.New("changing services needs root: run it with sudo")
	}
	return nil
}

func (s *serviceInstaller) hasSystemd() error {
	if _, err := os.Stat("/run/systemd/system"); err != nil {
		return errors.New("systemd does not run on this machine: start \"denoised serve\" with its own service manager instead")
	}
	return nil
}

// packaged tells whether a .deb or .rpm owns the service.
func (s *serviceInstaller) packaged() bool {
	for _, dir := range []string{"/usr/lib", "/lib"} {
		if _, err := os.Stat(s.path(dir + "/systemd/system/" + packaging.UnitName)); err == nil {
			return true
		}
	}
	return false
}

func (s *serviceInstaller) install(ctx context.Context, program string) error {
	if err := s.mayChange(); err != nil {
		return fmt.Errorf("install service: %w", err)
	}
	if s.packaged() {
		return errors.New("install service: a package already brought it: use systemctl enable --now denoised")
	}
	if err := s.copyProgram(program); err != nil {
		return fmt.Errorf("install service: %w", err)
	}
	files := packaging.Files("/etc")
	cuda := packaging.CUDA("/etc")
	if s.cuda {
		files = append(files, cuda)
	} else if _, err := os.Stat(s.path(filepath.Join(filepath.Dir(localBinary), cudaProgram))); errors.Is(err, fs.ErrNotExist) {
		// Of an earlier program; what nothing can use any more stays locked.
		switch err := os.Remove(s.path(cuda.Path)); {
		case err == nil:
			fmt.Fprintf(s.out, "%-12s %s\n", "removed", cuda.Path)
		case !errors.Is(err, fs.ErrNotExist):
			return fmt.Errorf("install service: %w", err)
		}
	}
	for _, f := range files {
		data := bytes.ReplaceAll(f.Data, []byte("="+packaging.BinaryPath+" "), []byte("="+localBinary+" "))
		done, err := s.write(f, data)
		if err != nil {
			return fmt.Errorf("install service: %w", err)
		}
		fmt.Fprintf(s.out, "%-12s %s\n", done, f.Path)
	}
	if s.root == "" {
		if _, err := s.run(ctx, "systemd-sysusers", "denoised.conf"); err != nil {
			return fmt.Errorf("install service: create account %s: %w", packaging.Account, err)
		}
		if _, err := s.run(ctx, "systemctl", "daemon-reload"); err != nil {
			return fmt.Errorf("install service: %w", err)
		}
	}
	fmt.Fprintf(s.out, "\nNext: put the archive's address into %s (marked EDIT), then\n  systemctl enable --now denoised\nIf it runs already: systemctl restart denoised\n", packaging.ConfigPath)
	return nil
}

// write puts one file in place and tells in a word what it did. What a person
// edited survives: a configuration is kept, another file is set aside.
func (s *serviceInstaller) write(f packaging.File, data []byte) (string, error) {
	target := s.path(f.Path)
	old, err := os.ReadFile(target)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return "written", s.writeFile(target, data, f.Mode)
	case err != nil:
		return "", err
	case bytes.Equal(old, data):
		return "up to date", nil
	case f.Config:
		return "kept", nil
	}
	if err := os.Rename(target, target+".previous"); err != nil {
		return "", err
	}
	return "replaced", s.writeFile(target, data, f.Mode)
}

// writeFile writes a file that is either complete or not there.
func (s *serviceInstaller) writeFile(target string, data []byte, mode fs.FileMode) error {
	if err := makeFolder(filepath.Dir(target)); err != nil {
		return err
	}
	return atomicfile.Write(target, mode, func(f *os.File) error {
		_, err := f.Write(data)
		return err
	})
}

// makeFolder makes a folder and those above it that everybody may enter,
// whatever the umask: under a strict one the service's account could not read
// its own configuration. Folders that are there stay as they are.
func makeFolder(dir string) error {
	if _, err := os.Stat(dir); !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	if err := makeFolder(filepath.Dir(dir)); err != nil {
		return err
	}
	return errors.Join(os.Mkdir(dir, 0o755), os.Chmod(dir, 0o755))
}

// copyProgram puts the running program where the unit expects it. A running
// service is not disturbed: it keeps the file it was started from.
func (s *serviceInstaller) copyProgram(program string) error {
	target := s.path(localBinary)
	from, err := os.Stat(program)
	if err != nil {
		return err
	}
	if to, err := os.Stat(target); err == nil && os.SameFile(from, to) {
		return nil
	}
	data, err := os.ReadFile(program)
	if err != nil {
		return err
	}
	if err := s.writeFile(target, data, 0o755); err != nil {
		return err
	}
	fmt.Fprintf(s.out, "%-12s %s\n", "written", localBinary)
	return nil
}

func (s *serviceInstaller) uninstall(ctx context.Context) error {
	if err := s.mayChange(); err != nil {
		return fmt.Errorf("uninstall service: %w", err)
	}
	if s.packaged() {
		return errors.New("uninstall service: a package brought it: remove the package denoised with apt or dnf")
	}
	files := packaging.Files("/etc")
	if _, err := os.Stat(s.path(files[0].Path)); err != nil {
		return fmt.Errorf("uninstall service: not installed: %w", err)
	}
	if s.root == "" {
		if _, err := s.run(ctx, "systemctl", "disable", "--now", packaging.UnitName); err != nil {
			return fmt.Errorf("uninstall service: %w", err)
		}
	}
	gone := []string{localBinary, packaging.CUDA("/etc").Path}
	for _, f := range files {
		if f.Config {
			fmt.Fprintf(s.out, "%-12s %s\n", "kept", f.Path)
			continue
		}
		gone = append(gone, f.Path)
	}
	for _, path := range gone {
		err := os.Remove(s.path(path))
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return fmt.Errorf("uninstall service: %w", err)
		}
		fmt.Fprintf(s.out, "%-12s %s\n", "removed", path)
	}
	if s.root == "" {
		if _, err := s.run(ctx, "systemctl", "daemon-reload"); err != nil {
			return fmt.Errorf("uninstall service: %w", err)
		}
	}
	fmt.Fprintln(s.out, "\nThe state folder stays, it may hold images that no archive has yet.")
	return nil
}

func (s *serviceInstaller) status(ctx context.Context) error {
	where := ""
	for _, dir := range []string{"/etc", "/usr/lib", "/lib"} {
		path := dir + "/systemd/system/" + packaging.UnitName
		if _, err := os.Stat(s.path(path)); err == nil {
			where = path
			break
		}
	}
	if where == "" {
		return errors.New("service status: not installed: run denoised service install, or install the package")
	}
	fmt.Fprintf(s.out, "%-14s %s\n", "unit", where)
	config := packaging.ConfigPath
	if _, err := os.Stat(s.path(config)); err != nil {
		config += " (missing)"
	}
	fmt.Fprintf(s.out, "%-14s %s\n", "configuration", config)
	if s.root != "" {
		return nil
	}
	if err := s.hasSystemd(); err != nil {
		return fmt.Errorf("service status: %w", err)
	}
	shown, err := s.run(ctx, "systemctl", "show", packaging.UnitName,
		"--property=ActiveState,SubState,UnitFileState,MainPID,NRestarts,ActiveEnterTimestamp,StatusText")
	if err != nil {
		return fmt.Errorf("service status: %w", err)
	}
	active := false
	for line := range strings.Lines(string(shown)) {
		name, value, _ := strings.Cut(strings.TrimSpace(line), "=")
		if value == "" {
			continue
		}
		active = active || name == "ActiveState" && value == "active"
		fmt.Fprintf(s.out, "%-14s %s\n", serviceProperty(name), value)
	}
	if !active {
		return errors.New("service status: not running: see journalctl -u denoised")
	}
	return nil
}

// serviceProperty gives systemd's property names in words.
func serviceProperty(name string) string {
	words := map[string]string{
		"ActiveState": "state", "SubState": "detail", "UnitFileState": "at boot", "MainPID": "process",
		"NRestarts": "restarts", "ActiveEnterTimestamp": "since", "StatusText": "says",
	}
	if word, ok := words[name]; ok {
		return word
	}
	return name
}

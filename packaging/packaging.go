// Package packaging holds what is installed beside the program: the systemd
// unit, the account it runs under and the default configuration. They are
// embedded so that `denoised service install` and the .deb and .rpm packages
// put the same bytes on a machine. A reader needs Files and File.
package packaging

import (
	_ "embed" // the files below
	"io/fs"
)

//go:embed systemd/denoised.service
var unit []byte

//go:embed systemd/cuda.conf
var cuda []byte

//go:embed systemd/denoised.sysusers
var sysusers []byte

//go:embed etc/denoised.yaml
var config []byte

// Names and places that the unit, the packages and the documentation share.
const (
	// UnitName is the name systemd knows the service by.
	UnitName = "denoised.service"
	// BinaryPath is where the unit expects the program.
	BinaryPath = "/usr/bin/denoised"
	// ConfigPath is the configuration that the unit starts with.
	ConfigPath = "/etc/denoised/denoised.yaml"
	// Account is the user and group the service runs as.
	Account = "denoised"
)

// File is one file to be installed.
type File struct {
	Path string      // absolute, on the target machine
	Mode fs.FileMode // permission bits
	Data []byte      // content; not to be changed
	// Config marks what belongs to the site once it is there: it is never
	// overwritten and not removed with the program.
	Config bool
}

// Files returns what a running service needs beside the program itself, for a
// machine whose own packages live in /usr/lib (dir = "/usr/lib", as the .deb
// and .rpm do) or for files put there by an administrator (dir = "/etc").
func Files(dir string) []File {
	return []File{
		{Path: dir + "/systemd/system/" + UnitName, Mode: 0o644, Data: unit},
		{Path: dir + "/sysusers.d/denoised.conf", Mode: 0o644, Data: sysusers},
		{Path: ConfigPath, Mode: 0o644, Data: config, Config: true},
	}
}

// CUDA returns what the service needs beside Files to use a GPU.
func CUDA(dir string) File {
	return File{Path: dir + "/systemd/system/" + UnitName + ".d/cuda.conf", Mode: 0o644, Data: cuda}
}

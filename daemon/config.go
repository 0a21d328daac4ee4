package daemon

import (
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"os"
	"path/filepath"
	"time"

	"github.com/diffdenoise/denoised/models/store"
	"github.com/diffdenoise/denoised/pipeline"
)

// Config is the configuration with all defaults filled in. LoadConfig and
// DefaultConfig make valid ones; treat them as read-only.
type Config struct {
	Path string // of the file; empty when there is none

	StateDir     string // absolute; needs a restart
	DICOM        DICOMConfig
	Series       SeriesConfig
	Rules        []pipeline.Rule
	Destinations []Destination
	Denoise      DenoiseConfig
	HTTP         HTTPConfig
	Watch        []WatchFolder
	Retention    RetentionConfig
	Log          LogConfig

	sum string // of the file's bytes
}

// DICOMConfig is the section dicom. All but AETitles and Peers need a restart.
type DICOMConfig struct {
	Listen   string                      // host:port, host may be empty
	AETitles map[string]pipeline.Quality // called AE titles; others are refused
	Peers    []Peer                      // who may send; empty: anybody
	TLS      TLSConfig
	Limits   Limits
	Timeouts Timeouts
	Admit    []string // words of image types that are denoised beside the known magnitudes
}

// Peer is a scanner that may send.
type Peer struct {
	AETitle string         // calling AE title
	Hosts   []netip.Prefix // empty: from anywhere
}

// TLSConfig is the second port, with TLS; off while Listen is empty.
type TLSConfig struct {
	Listen    string
	Cert, Key string // PEM files
	ClientCA  string // PEM file; if set, peers must show a certificate signed by it
}

// Limits bounds what peers may use.
type Limits struct {
	Associations int   // at a time, default 64
	PerHost      int   // at a time from one address, default 16
	Object       int64 // bytes, default 4 GiB
}

// Timeouts bounds how long peers may take.
type Timeouts struct {
	Request time.Duration // for the association request, default 10s
	Idle    time.Duration // between messages, default 60s
	Store   time.Duration // for one object, default 300s
}

// SeriesConfig says when a series counts as complete.
type SeriesConfig struct{ Quiet, QuietOpen, Max time.Duration } // defaults 20s, 60s, 30m

// Destination is where images go.
type Destination struct {
	Name, AETitle string
	Address       string   // host:port
	Send          []string // "original", "derived"; default both
	Commitment    bool     // always false in this version
	TLS           bool
}

// DenoiseConfig is the section denoise. All but Strength need a restart.
type DenoiseConfig struct {
	Backend string // auto, cpu or cuda
	Workers int    // slices at the same time; 0: one for each core
	Model   string // a name or a folder
	// RadiographModel is as Model, for images of CR and DX.
	RadiographModel string
	Strength        float64 // above 0, up to 1
	// HighAdapt lets the high pass fit the student to each series first.
	HighAdapt bool
}

// HTTPConfig is the section http; it needs a restart.
type HTTPConfig struct {
	Listen    string // a loopback address
	UsersFile string // always empty in this version
}

// WatchFolder is a hot folder.
type WatchFolder struct {
	Dir     string // absolute
	Quality pipeline.Quality
}

// RetentionConfig says when files are removed and when the disk is full.
type RetentionConfig struct {
	AfterForward         time.Duration
	DiskWarn, DiskRefuse float64 // fractions of the disk in use
}

// LogConfig is the section log.
type LogConfig struct{ Level string } // debug, info, warn, error

// DefaultConfig is what holds for the keys that a file leaves out. It has no
// destinations: images are received, denoised and kept.
func DefaultConfig() *Config {
	return &Config{
		StateDir: "/var/lib/denoised",
		DICOM: DICOMConfig{
			Listen:   ":11112",
			AETitles: map[string]pipeline.Quality{"DENOISE": pipeline.Fast, "DENOISE_HQ": pipeline.High},
			Limits:   Limits{Associations: 64, PerHost: 16, Object: 4 << 30},
			Timeouts: Timeouts{Request: 10 * time.Second, Idle: 60 * time.Second, Store: 300 * time.Second},
		},
		Series: SeriesConfig{Quiet: 20 * time.Second, QuietOpen: 60 * time.Second, Max: 30 * time.Minute},
		Denoise: DenoiseConfig{Backend: "auto", Model: store.DefaultName, RadiographModel: store.RadiographName,
			Strength: 1, HighAdapt: true},
		HTTP:      HTTPConfig{Listen: "127.0.0.1:8042"},
		Retention: RetentionConfig{AfterForward: 72 * time.Hour, DiskWarn: 0.80, DiskRefuse: 0.90},
		Log:       LogConfig{Level: "info"},
	}
}

// ConfigError is a mistake in a configuration file.
type ConfigError struct {
	File    string
	Line    int    // counted from 1; 0: the file as a whole
	Key     string // as in dicom.limits.object or destinations[0].address; may be empty
	Problem string // what is wrong
	Fix     string // what to do about it; may be empty
	Cause   error  // may be nil
}

// Error is one line: place, key, problem and fix.
func (e *ConfigError) Error() string {
	s := e.File
	if e.Line > 0 {
		s = fmt.Sprintf("%s:%d", s, e.Line)
	}
	if e.Key != "" {
		s += ": " + e.Key
	}
	s += ": " + e.Problem
	if e.Fix != "" {
		s += ": " + e.Fix
	}
	return s
}

// Unwrap returns the cause.
func (e *ConfigError) Unwrap() error { return e.Cause }

// maxConfig bounds the size of a configuration file in bytes.
const maxConfig = 1 << 20

// LoadConfig reads and checks a configuration file. The error is a
// *ConfigError. Other files that it names (keys, models, folders) are not
// looked at.
func LoadConfig(path string) (*Config, error) {
	broken := func(err error, fix string) error {
		var pe *os.PathError
		if errors.As(err, &pe) {
			err = pe.Err
		}
		return &ConfigError{File: path, Problem: "read the configuration: " + err.Error(), Fix: fix, Cause: err}
	}
	f, err := os.Open(path)
	if err != nil {
		return nil, broken(err, "give the right file with --config and let the service's account read it")
	}
	defer f.Close()
	text, err := io.ReadAll(io.LimitReader(f, maxConfig+1))
	if err != nil {
		return nil, broken(err, "let the service's account read it")
	}
	if len(text) > maxConfig {
		return nil, &ConfigError{File: path, Problem: fmt.Sprintf("larger than %d bytes", maxConfig), Fix: "this is not a configuration of denoised"}
	}
	cfg, err := parseConfig(path, text)
	if err != nil {
		return nil, err
	}
	cfg.sum = fingerprint(text)
	if cfg.Path, err = filepath.Abs(path); err != nil {
		return nil, broken(err, "give an absolute path with --config")
	}
	return cfg, nil
}

// fingerprint tells two contents apart.
func fingerprint(text []byte) string { return fmt.Sprintf("%x", sha256.Sum256(text)) }

// Warnings tells in sentences what is allowed and probably not wanted.
func (c *Config) Warnings() []string {
	var w []string
	if len(c.DICOM.Peers) == 0 {
		w = append(w, "dicom.peers is empty: everybody who can reach the DICOM port may send images; name the scanners there")
	}
	if len(c.Destinations) == 0 {
		w = append(w, "destinations is empty: images are received and kept, and go nowhere")
	}
	for _, d := range c.Destinations {
		if host, _ := splitAddress(d.Address); host == "pacs.invalid" {
			w = append(w, "destination "+d.Name+" still has the address of the example: put the archive's there")
		}
	}
	return w
}

// ownAETitle is the calling AE title towards destinations: the first of the
// served titles in alphabetical order.
func (c *Config) ownAETitle() string {
	own := ""
	for ae := range c.DICOM.AETitles {
		if own == "" || ae < own {
			own = ae
		}
	}
	return own
}

// options are the pipeline's part of the configuration.
func (c *Config) options() pipeline.Options {
	o := pipeline.Options{
		StateDir: c.StateDir, AETitles: c.DICOM.AETitles, Rules: c.Rules,
		Quiet: c.Series.Quiet, QuietOpen: c.Series.QuietOpen, MaxSeries: c.Series.Max,
		AfterForward: c.Retention.AfterForward, DiskWarn: c.Retention.DiskWarn, DiskRefuse: c.Retention.DiskRefuse,
		MaxObject: c.DICOM.Limits.Object, Workers: c.Denoise.Workers, Strength: c.Denoise.Strength,
		Admit: c.DICOM.Admit,
	}
	for _, d := range c.Destinations {
		o.Destinations = append(o.Destinations, pipeline.Destination{Name: d.Name, AETitle: d.AETitle, Address: d.Address, Send: d.Send, TLS: d.TLS})
	}
	return o
}

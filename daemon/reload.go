package daemon

import (
	"fmt"
	"reflect"
	"slices"
	"strings"
	"time"

	systemd "github.com/coreos/go-systemd/v22/daemon"
	"go.uber.org/zap"
)

// setting is a key as far as reloading is concerned.
type setting struct {
	key     string
	restart bool // a new value needs a restart
	value   func(*Config) any
	keep    func(to, from *Config) // for those that need a restart
}

// settings lists every key of the configuration.
var settings = []setting{
	{"state_dir", true, func(c *Config) any { return c.StateDir }, func(to, from *Config) { to.StateDir = from.StateDir }},
	{"dicom.listen", true, func(c *Config) any { return c.DICOM.Listen }, func(to, from *Config) { to.DICOM.Listen = from.DICOM.Listen }},
	{"dicom.ae_titles", false, func(c *Config) any { return c.DICOM.AETitles }, nil},
	{"dicom.peers", false, func(c *Config) any { return c.DICOM.Peers }, nil},
	{"dicom.tls.listen", true, func(c *Config) any { return c.DICOM.TLS.Listen }, func(to, from *Config) { to.DICOM.TLS = from.DICOM.TLS }}, // the port stays, so its files must
	{"dicom.tls.cert", false, func(c *Config) any { return c.DICOM.TLS.Cert }, nil},
	{"dicom.tls.key", false, func(c *Config) any { return c.DICOM.TLS.Key }, nil},
	{"dicom.tls.client_ca", false, func(c *Config) any { return c.DICOM.TLS.ClientCA }, nil},
	{"dicom.limits", true, func(c *Config) any { return c.DICOM.Limits }, func(to, from *Config) { to.DICOM.Limits = from.DICOM.Limits }},
	{"dicom.timeouts", true, func(c *Config) any { return c.DICOM.Timeouts }, func(to, from *Config) { to.DICOM.Timeouts = from.DICOM.Timeouts }},
	{"dicom.admit", false, func(c *Config) any { return c.DICOM.Admit }, nil},
	{"series", false, func(c *Config) any { return c.Series }, nil},
	{"rules", false, func(c *Config) any { return c.Rules }, nil},
	{"destinations", false, func(c *Config) any { return c.Destinations }, nil},
	{"denoise.backend", true, func(c *Config) any { return c.Denoise.Backend }, func(to, from *Config) { to.Denoise.Backend = from.Denoise.Backend }},
	{"denoise.workers", true, func(c *Config) any { return c.Denoise.Workers }, func(to, from *Config) { to.Denoise.Workers = from.Denoise.Workers }},
	{"denoise.model", true, func(c *Config) any { return c.Denoise.Model }, func(to, from *Config) { to.Denoise.Model = from.Denoise.Model }},
	{"denoise.radiograph_model", true, func(c *Config) any { return c.Denoise.RadiographModel },
		func(to, from *Config) { to.Denoise.RadiographModel = from.Denoise.RadiographModel }},
	{"denoise.high_adapt", true, func(c *Config) any { return c.Denoise.HighAdapt },
		func(to, from *Config) { to.Denoise.HighAdapt = from.Denoise.HighAdapt }},
	{"denoise.strength", false, func(c *Config) any { return c.Denoise.Strength }, nil},
	{"http", true, func(c *Config) any { return c.HTTP }, func(to, from *Config) { to.HTTP = from.HTTP }},
	{"watch", false, func(c *Config) any { return c.Watch }, nil},
	{"retention", false, func(c *Config) any { return c.Retention }, nil},
	{"log.level", false, func(c *Config) any { return c.Log.Level }, nil},
}

// reload reads the configuration file again and puts it in force. If anything
// is wrong with it, all stays as it was.
func (d *Daemon) reload() {
	d.notify(systemd.SdNotifyReloading + "\n" + systemd.SdNotifyMonotonicUsec())
	err := d.tryReload()
	text := ""
	if err != nil {
		text = err.Error()
		d.log.Error("configuration not taken over; the last good one stays in force", zap.Error(err))
	}
	d.failed.Store(&text)
	d.metrics.reloaded(err == nil, time.Now())
	d.notify(systemd.SdNotifyReady + "\nSTATUS=" + d.statusLine())
}

func (d *Daemon) tryReload() error {
	old := d.cfg.Load()
	if old.Path == "" {
		return fmt.Errorf("there is no configuration file")
	}
	next, err := LoadConfig(old.Path)
	if err != nil {
		return err
	}
	var changed, restart []string
	for _, s := range settings {
		if reflect.DeepEqual(s.value(old), s.value(next)) {
			continue
		}
		if s.restart {
			restart = append(restart, s.key)
			s.keep(next, old)
			continue
		}
		changed = append(changed, s.key)
	}
	files, err := loadTLS(next.DICOM.TLS)
	if err != nil {
		return err
	}
	if err := d.pipe.Reconfigure(next.options()); err != nil {
		return err
	}
	if err := d.setLevel(next.Log.Level); err != nil {
		return err
	}
	d.tls.Store(files)
	d.cfg.Store(next)
	d.hot.configure(next.Watch)
	d.restart.Store(&restart)
	d.log.Info("configuration read again", zap.Strings("changed", slices.Clip(changed)), zap.Strings("need_restart", slices.Clip(restart)))
	if len(restart) > 0 {
		d.log.Warn("some keys take effect only after a restart: " + strings.Join(restart, ", "))
	}
	if slices.Contains(changed, "dicom.peers") || slices.Contains(changed, "destinations") {
		for _, w := range next.Warnings() {
			d.log.Warn(w)
		}
	}
	return nil
}

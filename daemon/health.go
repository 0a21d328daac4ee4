package daemon

import (
	"context"
	"fmt"
	"strconv"
	"strings"
	"sync"
	"time"

	systemd "github.com/coreos/go-systemd/v22/daemon"
	"go.uber.org/zap"

	"github.com/diffdenoise/denoised/daemon/web"
	"github.com/diffdenoise/denoised/pipeline"
)

// health is the outcome of the last look at the pipeline.
type health struct {
	mu   sync.Mutex
	last pipeline.Health
	at   time.Time
}

func (h *health) set(last pipeline.Health, at time.Time) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.last, h.at = last, at
}

func (h *health) get() (pipeline.Health, time.Time) {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.last, h.at
}

const (
	healthInterval = 5 * time.Second
	healthTooOld   = 30 * time.Second
)

// watchHealth looks at the pipeline at intervals and feeds systemd's watchdog.
// The watchdog gets its sign only after spool and journal have answered, well
// or badly, and while the DICOM ports are being served: what a restart may heal
// is a hang. A full disk or a dead archive it does not heal; those are told by
// /readyz, the status line and metrics.
func (d *Daemon) watchHealth(ctx context.Context) error {
	interval := healthInterval
	if dog, err := systemd.SdWatchdogEnabled(false); err == nil && dog > 0 {
		interval = min(interval, dog/3)
	}
	tick := time.NewTicker(interval)
	defer tick.Stop()
	line, ok := "", true
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
		h := d.pipe.Check()
		now := time.Now()
		d.health.set(h, now)
		if err := d.accepting(now); err != nil {
			d.log.Error("the watchdog is not fed", zap.Error(err))
			continue
		}
		state := systemd.SdNotifyWatchdog
		if s := d.statusLine(); s != line {
			line = s
			state += "\nSTATUS=" + s
		}
		d.notify(state)
		if h.OK != ok {
			ok = h.OK
			if ok {
				d.log.Info("images can be received again")
			} else {
				d.log.Error("images cannot be received", zap.Strings("problems", h.Problems))
			}
		}
	}
}

// accepting returns an error when a DICOM port is not being served.
func (d *Daemon) accepting(now time.Time) error {
	for _, l := range []*watchedListener{d.dicom, d.dicomTLS} {
		if l != nil {
			if err := l.check(now); err != nil {
				return err
			}
		}
	}
	return nil
}

// Status says how the daemon is. Ready means that images can be received;
// Problems may name more than that, for a person to look at.
func (d *Daemon) Status() web.Status {
	h, at := d.health.get()
	cfg := d.cfg.Load()
	model, radiographs := d.denoiser.Model(), ""
	if c, ok := d.denoiser.(pipeline.Chooser); ok {
		m := c.For("DX").Model()
		radiographs = strings.TrimSpace(m.Name + " " + m.Version)
	}
	s := web.Status{
		Ready: h.OK, Problems: append([]string{}, h.Problems...), Version: d.version, Started: d.started,
		Model: strings.TrimSpace(model.Name + " " + model.Version), RadiographModel: radiographs,
		DiskUsed: h.DiskUsed, DiskRefuse: cfg.Retention.DiskRefuse,
		Denoise: web.Queue{Waiting: h.Denoise.Waiting, OldestSeconds: h.Denoise.Age.Seconds()}, Errors: []web.LogLine{},
		High:         web.High{Queue: web.Queue{Waiting: h.High.Waiting, OldestSeconds: h.High.Age.Seconds()}, NotPossible: h.NoHigh, Now: h.HighNow},
		Destinations: []web.Destination{},
	}
	for _, dest := range cfg.Destinations {
		q := h.Forward[dest.Name]
		s.Destinations = append(s.Destinations, web.Destination{Name: dest.Name, AETitle: dest.AETitle, Address: dest.Address, Breaker: h.Breakers[dest.Name],
			Queue: web.Queue{Waiting: q.Waiting, OldestSeconds: q.Age.Seconds()}})
	}
	for _, l := range d.recent.recent() {
		s.Errors = append(s.Errors, web.LogLine(l))
	}
	if len(cfg.Destinations) == 0 {
		s.Problems = append(s.Problems, "no destination is configured: images are kept and go nowhere, also when one is added later")
	}
	for i, dest := range cfg.Destinations {
		if d.loops.leadBack(placeOf(dest)) && h.Breakers[dest.Name] != "loop" {
			s.Destinations[i].Breaker = "loop"
			s.Problems = append(s.Problems, fmt.Sprintf("destination %s sends to this daemon, images would go round: "+
				"correct one of the two configurations", dest.Name))
		}
	}
	d.workerStatus(&s)
	bad := func(text string) { s.Ready, s.Problems = false, append(s.Problems, text) }
	now := time.Now()
	select {
	case <-d.ready:
	default:
		bad("starting")
	}
	if d.stopping.Load() {
		bad("stopping")
	}
	if age := now.Sub(at); age > healthTooOld {
		bad(fmt.Sprintf("spool and journal have not answered for %v", age.Round(time.Second)))
	}
	if err := d.accepting(now); err != nil {
		bad(err.Error())
	}
	if text := d.tls.Load().trouble(now); text != "" {
		s.Problems = append(s.Problems, text)
	}
	if keys := d.restart.Load(); keys != nil && len(*keys) > 0 {
		s.Problems = append(s.Problems, "changed in the configuration, needs a restart: "+strings.Join(*keys, ", "))
	}
	if text := d.failed.Load(); text != nil && *text != "" {
		s.Problems = append(s.Problems, "the changed configuration is not in force: "+*text)
	}
	return s
}

// statusLine is what systemctl status shows.
func (d *Daemon) statusLine() string {
	s := d.Status()
	waiting := s.Denoise.Waiting
	for _, dest := range s.Destinations {
		waiting += dest.Queue.Waiting
	}
	line := "images are received"
	if !s.Ready {
		line = "IMAGES ARE NOT RECEIVED"
	}
	line += ", " + strconv.FormatInt(waiting, 10) + " steps waiting"
	if len(s.Problems) > 0 {
		line += ": " + s.Problems[0]
	}
	return strings.ReplaceAll(line, "\n", " ")
}

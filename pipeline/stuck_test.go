package pipeline

import (
	"strings"
	"sync/atomic"
	"testing"

	"github.com/prometheus/client_golang/prometheus"
)

// TestStuck: what an archive refuses for good and what is in conflict is told, by Check and in the metrics, until a
// person has moved it on.
func TestStuck(t *testing.T) {
	a := newArchive()
	var refuse atomic.Bool
	refuse.Store(true)
	a.store = func(int, Destination, Outgoing, []byte) (uint16, error, bool) {
		if refuse.Load() {
			return 0x0122, nil, false // SOP class not supported
		}
		return 0, nil, true
	}
	o := options(t, a)
	registry := prometheus.NewRegistry()
	o.Registerer = registry
	originalsOnly(&o)
	p := start(t, o)
	told := func(what string) bool { return strings.Contains(strings.Join(p.Check().Problems, "\n"), what) }
	if h := p.Check(); len(h.Problems) != 0 {
		t.Fatalf("at first: %q", h.Problems)
	}
	im := slice(1, 1)
	receive(t, p, im)
	eventually(t, "the refused image told",
		func() bool { return told("1 images will not be sent to destination pacs") })
	if got := stuck(t, registry); got["refused pacs"] != 1 || got["conflict "] != 0 || len(got) != 2 {
		t.Errorf("metrics %v", got)
	}
	refuse.Store(false)
	if n, err := p.Retry(t.Context(), im.series); n != 1 || err != nil {
		t.Fatal(n, err)
	}
	eventually(t, "nothing stuck", func() bool { return len(p.Check().Problems) == 0 })

	other := im
	other.seed = 7 // other bytes
	receive(t, p, other)
	eventually(t, "the conflict told", func() bool { return told("1 images came with other bytes") })
}

// stuck reads the gauge of what is stuck, by its labels.
func stuck(t *testing.T, from prometheus.Gatherer) map[string]float64 {
	t.Helper()
	families, err := from.Gather()
	if err != nil {
		t.Fatal(err)
	}
	got := map[string]float64{}
	for _, f := range families {
		if f.GetName() != "denoised_stuck_images" {
			continue
		}
		for _, m := range f.GetMetric() {
			labels := map[string]string{}
			for _, l := range m.GetLabel() {
				labels[l.GetName()] = l.GetValue()
			}
			got[labels["why"]+" "+labels["dest"]] = m.GetGauge().GetValue()
		}
	}
	return got
}

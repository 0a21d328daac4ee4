package pipeline

import (
	"context"
	"sync"

	"github.com/diffdenoise/denoised/pipeline/derive"
	"github.com/diffdenoise/denoised/pipeline/spool"
)

// names remembers for a while which derived series go on under the UIDs of earlier
// versions. The zero value is ready.
type names struct {
	mu    sync.Mutex
	first map[namedSeries]bool
}

// namedSeries is a derived series before it has a name.
type namedSeries struct {
	series   int64
	model    derive.ModelInfo
	strength float64
	quality  string
}

// Limits of what is looked at and remembered.
const (
	maxNames    = 256     // series
	maxNameRows = 1 << 16 // of a series
)

// firstUIDs says whether the derived object of in is to be named as earlier versions named it:
// the journal knows an object of the same derived series by such a name. What is made again
// then is the object that archives have, and a series that was begun before an upgrade stays one.
func (p *Pipeline) firstUIDs(ctx context.Context, in spool.Instance, par derive.Params) (bool, error) {
	model := par.Model
	model.Fitted = "" // has no part in the names
	key := namedSeries{in.Series, model, par.Strength, par.Quality}
	p.names.mu.Lock()
	defer p.names.mu.Unlock()
	if first, ok := p.names.first[key]; ok {
		return first, nil
	}
	rows, err := p.jrnl.SeriesInstances(ctx, in.Series, maxNameRows)
	if err != nil {
		return false, err
	}
	first := namedFirst(rows, par)
	if p.names.first == nil || len(p.names.first) >= maxNames {
		p.names.first = map[namedSeries]bool{}
	}
	p.names.first[key] = first
	return first, nil
}

// namedFirst reports whether one of a series' rows is a derived object, gone or not, with the
// name that par gave it in earlier versions.
func namedFirst(rows []spool.Instance, par derive.Params) bool {
	originals := map[int64]string{}
	for _, r := range rows {
		if r.Kind == spool.Original {
			originals[r.ID] = r.SOP
		}
	}
	for _, r := range rows {
		source := originals[r.Source]
		if r.Kind == spool.Derived && r.Quality == par.Quality && source != "" &&
			derive.FirstSOPInstanceUID(source, par) == r.SOP {
			return true
		}
	}
	return false
}

package pipeline

import (
	"context"
	"fmt"
	"io"
	"strings"

	"github.com/diffdenoise/denoised/internal/dcm"
	"github.com/diffdenoise/denoised/pipeline/spool/journal"
)

// OpenObject opens image n (1-based, by instance number, then arrival) of a
// series: which is "original", "fast" or "high". The Object reads from the returned
// Closer's file. ErrUnknownSeries: there is no such image, or its file is purged.
func (p *Pipeline) OpenObject(ctx context.Context, seriesUID string, n int, which string) (*dcm.Object, io.Closer,
	error) {
	found, _, err := p.find(ctx, seriesUID, n, which)
	if err != nil {
		return nil, nil, err
	}
	o, f, err := p.open(found)
	if err != nil {
		return nil, nil, fmt.Errorf("series %q image %d: %w", seriesUID, n, err)
	}
	return o, f, nil
}

// find returns the row of what OpenObject opens, and what is on record about it: why
// a derived object is not the plain result of its method, empty if it is.
func (p *Pipeline) find(ctx context.Context, seriesUID string, n int, which string) (found journal.Instance,
	remark string, err error) {
	none := fmt.Errorf("series %q image %d %s: %w", seriesUID, n, which, ErrUnknownSeries)
	s, err := p.jrnl.SeriesByKey(ctx, seriesUID)
	if err != nil {
		return found, "", err
	}
	if s == nil {
		return found, "", none
	}
	original, err := p.jrnl.Original(ctx, s.ID, n)
	if err != nil {
		return found, "", err
	}
	if original == nil {
		return found, "", none
	}
	found = *original
	switch quality := Quality(which); {
	case which == "original":
	case quality == Fast || quality == High:
		// The last one, should there be objects of several models.
		d, err := p.jrnl.Derived(ctx, found.ID, quality)
		if err != nil {
			return found, "", err
		}
		if d == nil {
			return found, "", none
		}
		reason, detail := found.Reason, found.Detail
		if quality == High {
			h, err := p.jrnl.High(ctx, found.ID)
			if err != nil {
				return found, "", err
			}
			if reason, detail = "", ""; h != nil {
				reason, detail = h.Reason, h.Detail
			}
		}
		found, remark = *d, strings.TrimSuffix(string(reason)+": "+detail, ": ")
	default:
		return found, "", none
	}
	if found.Gone {
		return found, "", none
	}
	return found, remark, nil
}

// open opens and scans the file of a row.
func (p *shared) open(in journal.Instance) (*dcm.Object, io.Closer, error) {
	f, err := p.store.Open(in.File)
	if err != nil {
		return nil, nil, err
	}
	o, err := scan(f, in.Offset+in.Size)
	if o == nil {
		f.Close()
		return nil, nil, fmt.Errorf("read header of spool file %s: %w", in.File, err)
	}
	return o, f, nil
}

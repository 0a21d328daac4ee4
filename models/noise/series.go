package noise

import "github.com/diffdenoise/denoised/internal/numeric"

// maxSeriesBlocks bounds the memory of a Series: 4 MB.
const maxSeriesBlocks = 1 << 14

// Series measures the correlation of the noise of a whole series, which is that of
// its scanner's filters and the same in every slice. It may be used by one
// goroutine at a time; the zero value is ready.
type Series struct {
	blocks  []block
	every   int // one of so many blocks is kept
	skipped int
}

// Add takes in one slice on its native grid, w×h pixels; skip marks pixels that are
// no measurement, as in Estimate. All slices of a series are to have one scale.
func (s *Series) Add(img []float32, w, h int, skip []bool) error {
	if err := check(img, w, h, skip); err != nil {
		return err
	}
	b := pool.Get().(*buffers)
	defer pool.Put(b)
	b.blank = numeric.Grow(b.blank, w*h)
	outside(b.blank, img, w, h, skip)
	if skip != nil {
		img = b.without(img, skip)
	}
	b.flatBlocks(img, w, h)
	s.keep(b.blocks)
	return nil
}

func (s *Series) keep(blocks []block) {
	s.every = max(s.every, 1)
	for _, b := range blocks {
		if s.skipped++; s.skipped < s.every {
			continue
		}
		s.skipped = 0
		if s.blocks = append(s.blocks, b); len(s.blocks) == maxSeriesBlocks {
			for i := range len(s.blocks) / 2 {
				s.blocks[i] = s.blocks[2*i]
			}
			s.blocks, s.every = s.blocks[:len(s.blocks)/2], 2*s.every
		}
	}
}

// Correlation returns what was measured so far.
func (s *Series) Correlation() Correlation {
	var vals []float32
	return correlate(s.blocks, &vals)
}

package derive

import "fmt"

// Reasons why the pixels of a derived object are not the method's plain result.
const (
	HeldBack = "gate"    // a quality check held the result of a frame back: it is a copy
	Blended  = "blended" // a quality check let the result of a frame through in part
)

// Checked collects what a quality check said about the frames of one object, in
// their order. The zero value is that of an object without frames.
type Checked struct {
	frames, held, part int
	worst              string // about the first frame held back, else about the first one blended
	at                 int    // that frame, from 1
}

// Add takes in the next frame: why the check did not let all of its result
// through, empty if it did, and the share of the change that it let through.
func (c *Checked) Add(why string, share float64) {
	c.frames++
	if why == "" {
		return
	}
	text := why
	if share > 0 {
		c.part++
		text = fmt.Sprintf("%d %% of the change kept: %s", int(100*share), why)
	} else {
		c.held++
	}
	if c.worst == "" || share <= 0 && c.held == 1 {
		c.worst, c.at = text, c.frames
	}
}

// Reason is HeldBack, Blended, or empty if all results were let through.
func (c *Checked) Reason() string {
	switch {
	case c.held > 0:
		return HeldBack
	case c.part > 0:
		return Blended
	}
	return ""
}

// String says it in words, with counts if there are several frames; empty if all
// results were let through.
func (c *Checked) String() string {
	if c.frames < 2 || c.worst == "" {
		return c.worst
	}
	return fmt.Sprintf("of %d frames %d held back, %d kept in part; frame %d: %s", c.frames, c.held, c.part, c.at, c.worst)
}

// Remark is String as Params.Remark wants it.
func (c *Checked) Remark() string {
	if c.worst == "" {
		return ""
	}
	return "quality check: " + c.String()
}

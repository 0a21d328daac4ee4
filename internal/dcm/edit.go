package dcm

import (
	"encoding/binary"
	"fmt"
	"io"
	"sort"
)

// Editor collects changes to the data set of one Object and writes the result.
// Whatever no change names is copied byte for byte, defined lengths of items and
// sequences around a change apart. It is used by one goroutine and for one result.
type Editor struct {
	o       *Object
	patches []patch
	touched map[patchKey]bool
	grown   map[int32]int64 // bytes that a container's content gains
	err     error
}

type patchKey struct {
	parent int32
	tag    Tag
}

// patch replaces file bytes [off, off+cut) by text or by what stream writes.
type patch struct {
	off, cut int64
	text     []byte
	stream   func(io.Writer) error
	size     int64
	rank     int // nesting: of insertions at one place the innermost comes first
	order    Tag // then the tags ascend
}

// Edit starts the changes. It fails for an object that is damaged, deflated or
// whose tags do not ascend: such an object cannot be rebuilt with certainty.
func (o *Object) Edit() (*Editor, error) {
	switch {
	case o.damage != nil:
		return nil, fmt.Errorf("edit data set: %w", o.damage)
	case o.deflated:
		return nil, fmt.Errorf("edit data set: deflated")
	case !o.ordered:
		return nil, fmt.Errorf("edit data set: tags not in ascending order")
	}
	return &Editor{o: o, touched: map[patchKey]bool{}, grown: map[int32]int64{}}, nil
}

// Set replaces the element n.Tag of item, or inserts it in tag order. The zero
// Element stands for the data set itself; any other item must be one that
// [Element.Children] of a sequence yielded.
func (ed *Editor) Set(item Element, n Node) {
	if ed.err != nil {
		return
	}
	if err := n.check(); err != nil {
		ed.err = err
		return
	}
	at, cut, parent, ok := ed.place(item, n.Tag)
	if !ok {
		return
	}
	enc := ed.o.enc
	if item.OK() && item.raw().flags&flagImplicit != 0 {
		enc = Encoding{Implicit: true}
	}
	text := enc.Append(nil, n)
	ed.add(patch{off: at, cut: cut, text: text, size: int64(len(text)), rank: rank(item), order: n.Tag}, parent)
}

// Remove drops the element t of item; nothing happens if it is not there.
func (ed *Editor) Remove(item Element, t Tag) {
	if ed.err != nil {
		return
	}
	at, cut, parent, ok := ed.place(item, t)
	if !ok || cut == 0 {
		return
	}
	ed.add(patch{off: at, cut: cut, rank: rank(item), order: t}, parent)
}

// TakesItems reports whether AppendItems can add items to e: a top-level sequence, which
// may have come as UN (PS3.5 6.2.2). One without a value takes none: set it instead.
func (e Element) TakesItems() bool {
	return e.OK() && e.IsSequence() && e.Depth() == 0 && e.Tag() != Item
}

// AppendItems adds items behind the last one of a top-level sequence, in the encoding of
// those that are there: in one that came as UN that is implicit VR little endian.
func (ed *Editor) AppendItems(sequence Element, items ...[]Node) {
	if ed.err != nil {
		return
	}
	if !sequence.TakesItems() {
		ed.fail("add items to %v: not a sequence at the top", sequence.Tag())
		return
	}
	r := sequence.raw()
	if !ed.claim(-1, r.tag) {
		return
	}
	at := r.end()
	if r.flags&flagUndefined != 0 {
		at -= 8
	}
	enc := ed.o.enc
	if r.vr != SQ {
		enc = Encoding{Implicit: true}
	}
	var text []byte
	for _, nodes := range items {
		body := enc.Append(nil, nodes...)
		text = append(enc.appendHeader(text, Item, 0, uint32(len(body))), body...)
	}
	ed.add(patch{off: at, text: text, size: int64(len(text)), rank: 1}, sequence.i)
}

// Stream replaces the value of e, keeping its header and its length; write must
// write exactly e.Length() bytes.
func (ed *Editor) Stream(e Element, write func(io.Writer) error) {
	if ed.err != nil || !ed.claim(-1, e.Tag()) {
		return
	}
	r := e.raw()
	ed.patches = append(ed.patches, patch{off: r.value(), cut: r.length, stream: write, size: r.length, order: r.tag})
}

// rank orders the content of item against that of the containers around it.
func rank(item Element) int {
	if !item.OK() {
		return 0
	}
	return 2 * item.Depth()
}

func (ed *Editor) fail(format string, args ...any) {
	if ed.err == nil {
		ed.err = fmt.Errorf("edit data set: "+format, args...)
	}
}

// claim makes sure that nothing is changed twice.
func (ed *Editor) claim(parent int32, t Tag) bool {
	k := patchKey{parent, t}
	if ed.touched[k] {
		ed.fail("%v changed twice", t)
		return false
	}
	ed.touched[k] = true
	return true
}

// place finds where t is or belongs and how many bytes it takes there now.
func (ed *Editor) place(item Element, t Tag) (at, cut int64, parent int32, ok bool) {
	o := ed.o
	if !item.OK() {
		if !ed.claim(-1, t) {
			return
		}
		k := sort.Search(len(o.top), func(k int) bool { return o.elems[o.top[k]].tag >= t })
		if k == len(o.top) {
			return o.size, 0, -1, true
		}
		e := &o.elems[o.top[k]]
		if e.tag == t {
			cut = e.end() - e.off
		}
		return e.off, cut, -1, true
	}
	r := item.raw()
	if r.tag != Item || r.flags&flagSequence == 0 {
		ed.fail("%v is not an item", r.tag)
		return
	}
	if !ed.claim(item.i, t) {
		return
	}
	at = r.end()
	if r.flags&flagUndefined != 0 {
		at -= 8
	}
	var last Tag
	found := false
	for c := range item.Children() {
		e := c.raw()
		if e.tag <= last {
			ed.fail("tags of an item not in ascending order at %v", e.tag)
			return
		}
		last = e.tag
		if !found && e.tag >= t {
			found = true
			at = e.off
			if e.tag == t {
				cut = e.end() - e.off
			}
		}
	}
	return at, cut, item.i, true
}

// add records a patch and what it does to the lengths around it.
func (ed *Editor) add(p patch, parent int32) {
	ed.patches = append(ed.patches, p)
	if parent >= 0 {
		ed.grown[parent] += p.size - p.cut
	}
}

// lengths adds the patches that correct defined lengths of the items and
// sequences around changes. Containers are entries in file order, so going
// through them backwards meets every inner one before its outer one.
func (ed *Editor) lengths() error {
	if len(ed.grown) == 0 {
		return nil
	}
	// parents of all entries, by one pass with a stack of open containers
	o := ed.o
	parent := make([]int32, len(o.elems))
	var open []int32
	for i := range o.elems {
		for len(open) > 0 && int32(i) >= o.elems[open[len(open)-1]].next {
			open = open[:len(open)-1]
		}
		parent[i] = -1
		if len(open) > 0 {
			parent[i] = open[len(open)-1]
		}
		if o.elems[i].flags&flagSequence != 0 {
			open = append(open, int32(i))
		}
	}
	for i := int32(len(o.elems) - 1); i >= 0; i-- {
		d, ok := ed.grown[i]
		if !ok {
			continue
		}
		e := &o.elems[i]
		if p := parent[i]; p >= 0 {
			ed.grown[p] += d
		}
		if e.flags&flagUndefined != 0 || d == 0 {
			continue
		}
		n := e.length + d
		if n < 0 || n > 0xFFFFFFFE {
			return fmt.Errorf("edit data set: %v becomes %d bytes", e.tag, n)
		}
		order := binary.AppendByteOrder(binary.LittleEndian)
		if e.flags&flagBigEndian != 0 {
			order = binary.BigEndian
		}
		ed.patches = append(ed.patches, patch{off: e.value() - 4, cut: 4, size: 4,
			text: order.AppendUint32(nil, uint32(n)), order: e.tag})
	}
	return nil
}

// WriteTo writes the changed data set (without file meta information) and
// returns its length. It streams: nothing of the source is held in memory but
// one copy buffer.
func (ed *Editor) WriteTo(w io.Writer) (int64, error) {
	if ed.err != nil {
		return 0, ed.err
	}
	if err := ed.lengths(); err != nil {
		return 0, err
	}
	sort.SliceStable(ed.patches, func(i, j int) bool {
		a, b := &ed.patches[i], &ed.patches[j]
		if a.off != b.off {
			return a.off < b.off
		}
		if (a.cut == 0) != (b.cut == 0) {
			return a.cut == 0 // an insertion in front of what starts there
		}
		if a.rank != b.rank {
			return a.rank > b.rank
		}
		return a.order < b.order
	})
	var total int64
	pos := ed.o.dataOffset
	buf := make([]byte, 64<<10)
	copyTo := func(end int64) error {
		for pos < end {
			n := min(int64(len(buf)), end-pos)
			if err := ed.o.readAt(buf[:n], pos); err != nil {
				return fmt.Errorf("copy bytes %d to %d of the source: %w", pos, end, err)
			}
			k, err := w.Write(buf[:n])
			total += int64(k)
			if err != nil {
				return err
			}
			pos += n
		}
		return nil
	}
	for _, p := range ed.patches {
		if p.off < pos {
			return total, fmt.Errorf("edit data set: overlapping changes at byte %d", p.off)
		}
		if err := copyTo(p.off); err != nil {
			return total, err
		}
		if p.stream == nil {
			k, err := w.Write(p.text)
			total += int64(k)
			if err != nil {
				return total, err
			}
		} else {
			c := &counter{w: w}
			err := p.stream(c)
			total += c.n
			if err != nil {
				return total, err
			}
			if c.n != p.size {
				return total, fmt.Errorf("edit data set: %v has %d bytes, wrote %d", p.order, p.size, c.n)
			}
		}
		pos = p.off + p.cut
	}
	return total, copyTo(ed.o.size)
}

type counter struct {
	w io.Writer
	n int64
}

func (c *counter) Write(b []byte) (int, error) {
	n, err := c.w.Write(b)
	c.n += int64(n)
	return n, err
}

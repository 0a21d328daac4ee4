package derive

// Term is a row of the table of kinds, for tests.
type Term struct {
	Vendor, Kind, Place, Source string
	Words                       []string
}

// Terms is the table of kinds, for tests.
func Terms() (list []Term) {
	for _, t := range terms {
		list = append(list, Term{t.vendor, string(t.kind), string(t.place), t.source, t.words})
	}
	return list
}

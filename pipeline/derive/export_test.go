package derive

// Term is a row of the table of kinds, for tests.
type Term struct {
	Vendor, Kind, Source string
	Third                bool
	Words                []string
}

// Terms is the table of kinds, for tests.
func Terms() (list []Term) {
	for _, t := range terms {
		list = append(list, Term{t.vendor, string(t.kind), t.source, t.third, t.words})
	}
	return list
}

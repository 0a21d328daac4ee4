package ul

import (
	"fmt"
	"strings"
)

// page is PS3.8 table 9-10: a row per event, a column per state, the action in
// the cell. A dot is a cell that the standard leaves empty: the event cannot
// happen there, or the local user may not cause it.
const page = `
       Sta1  Sta2  Sta3  Sta4  Sta5  Sta6  Sta7  Sta8  Sta9  Sta10 Sta11 Sta12 Sta13
Evt1   AE-1  .     .     .     .     .     .     .     .     .     .     .     .
Evt2   .     .     .     AE-2  .     .     .     .     .     .     .     .     .
Evt3   .     AA-1  AA-8  .     AE-3  AA-8  AA-8  AA-8  AA-8  AA-8  AA-8  AA-8  AA-6
Evt4   .     AA-1  AA-8  .     AE-4  AA-8  AA-8  AA-8  AA-8  AA-8  AA-8  AA-8  AA-6
Evt5   AE-5  .     .     .     .     .     .     .     .     .     .     .     .
Evt6   .     AE-6  AA-8  .     AA-8  AA-8  AA-8  AA-8  AA-8  AA-8  AA-8  AA-8  AA-7
Evt7   .     .     AE-7  .     .     .     .     .     .     .     .     .     .
Evt8   .     .     AE-8  .     .     .     .     .     .     .     .     .     .
Evt9   .     .     .     .     .     DT-1  .     AR-7  .     .     .     .     .
Evt10  .     AA-1  AA-8  .     AA-8  DT-2  AR-6  AA-8  AA-8  AA-8  AA-8  AA-8  AA-6
Evt11  .     .     .     .     .     AR-1  .     .     .     .     .     .     .
Evt12  .     AA-1  AA-8  .     AA-8  AR-2  AR-8  AA-8  AA-8  AA-8  AA-8  AA-8  AA-6
Evt13  .     AA-1  AA-8  .     AA-8  AA-8  AR-3  AA-8  AA-8  AR-10 AR-3  AA-8  AA-6
Evt14  .     .     .     .     .     .     .     AR-4  AR-9  .     .     AR-4  .
Evt15  .     .     AA-1  AA-2  AA-1  AA-1  AA-1  AA-1  AA-1  AA-1  AA-1  AA-1  .
Evt16  .     AA-2  AA-3  .     AA-3  AA-3  AA-3  AA-3  AA-3  AA-3  AA-3  AA-3  AA-2
Evt17  .     AA-5  AA-4  AA-4  AA-4  AA-4  AA-4  AA-4  AA-4  AA-4  AA-4  AA-4  AR-5
Evt18  .     AA-2  .     .     .     .     .     .     .     .     .     .     AA-2
Evt19  .     AA-1  AA-8  .     AA-8  AA-8  AA-8  AA-8  AA-8  AA-8  AA-8  AA-8  AA-7
`

const (
	states = 13
	events = 19
)

// action is what a cell of the table asks for.
type action struct {
	name string
	do   func(m *Machine, ev Event)
}

// cells is page, parsed: cells[event][state], both from 1.
var cells = parse(page)

func parse(page string) (cells [events + 1][states + 1]action) {
	lines := strings.Split(strings.TrimSpace(page), "\n")
	if len(lines) != events+1 {
		panic(fmt.Sprintf("ul: the table has %d rows", len(lines)-1))
	}
	for i, line := range lines[1:] {
		fields := strings.Fields(line)
		if len(fields) != states+1 || fields[0] != fmt.Sprintf("Evt%d", i+1) {
			panic("ul: bad table row: " + line)
		}
		for j, name := range fields[1:] {
			if name == "." {
				continue
			}
			do, ok := actions[name]
			if !ok {
				panic("ul: the table names an unknown action " + name)
			}
			cells[i+1][j+1] = action{name, do}
		}
	}
	return cells
}

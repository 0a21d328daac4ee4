package ul_test

import (
	"fmt"

	"github.com/diffdenoise/denoised/dicomnet/ul"
)

func ExampleMachine_Step() {
	m := ul.New()
	for _, kind := range []ul.EventKind{ul.TransportIndication, ul.DataReceived} {
		effects, err := m.Step(ul.Event{Kind: kind})
		if err != nil {
			fmt.Println(err)
			return
		}
		for _, e := range effects {
			fmt.Println(kind, "->", e.Kind)
		}
	}
	fmt.Println(m.State())
	// Output:
	// Evt5 (transport indication) -> start ARTIM
	// Evt10 (P-DATA-TF) -> send A-ABORT
	// Evt10 (P-DATA-TF) -> start ARTIM
	// Sta13
}

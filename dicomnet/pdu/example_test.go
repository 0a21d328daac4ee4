package pdu_test

import (
	"bytes"
	"fmt"

	"github.com/diffdenoise/denoised/dicomnet/pdu"
)

func ExampleRead() {
	b, err := (&pdu.Abort{Source: 2, Reason: pdu.ReasonInvalidParameter}).Append(nil)
	if err != nil {
		fmt.Println(err)
		return
	}
	p, err := pdu.Read(bytes.NewReader(b), 16384)
	fmt.Printf("%v %+v %v\n", p.Type(), p, err)
	// Output: A-ABORT &{Source:2 Reason:6} <nil>
}

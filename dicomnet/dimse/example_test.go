package dimse_test

import (
	"fmt"

	"github.com/diffdenoise/denoised/dicomnet/dimse"
)

func ExampleDecode() {
	rsp := &dimse.Command{Field: dimse.CStoreRSP, MessageIDBeingRespondedTo: 7, DataSetType: dimse.NoDataSet, Status: dimse.StatusOutOfResources}
	b, err := rsp.Append(nil)
	if err != nil {
		fmt.Println(err)
		return
	}
	c, err := dimse.Decode(b)
	fmt.Println(c.Field, c.Status, c.Status.IsFailure(), err)
	// Output: C-STORE-RSP 0xA700 (out of resources) true <nil>
}

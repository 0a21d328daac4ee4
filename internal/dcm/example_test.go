package dcm_test

import (
	"bytes"
	"fmt"

	"github.com/diffdenoise/denoised/internal/dcm"
	"github.com/diffdenoise/denoised/internal/dcm/dcmtest"
)

// A stored file is scanned, read by tag, and copied with one element replaced.
func Example() {
	file := dcmtest.MR(64, 64, 0).File(dcmtest.Form{})
	o, err := dcm.Scan(bytes.NewReader(file), int64(len(file)))
	if err != nil {
		fmt.Println(err)
		return
	}
	rows, _ := o.Int(dcm.Rows)
	fmt.Println(o.String(dcm.Modality), rows, o.Strings(dcm.ImageType))

	ed, err := o.Edit()
	if err != nil {
		fmt.Println(err)
		return
	}
	ed.Set(dcm.Element{}, dcm.Text(dcm.SeriesDescription, dcm.LO, "t1_se_tra DN"))
	var out bytes.Buffer
	n, err := ed.WriteTo(&out)
	fmt.Println(n-(int64(len(file))-o.DataSetOffset()), err)
	// Output:
	// MR 64 [ORIGINAL PRIMARY M ND]
	// 2 <nil>
}

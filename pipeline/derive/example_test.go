package derive_test

import (
	"bytes"
	"fmt"

	"github.com/diffdenoise/denoised/internal/dcm"
	"github.com/diffdenoise/denoised/internal/dcm/dcmtest"
	"github.com/diffdenoise/denoised/pipeline/derive"
)

// A received image is inspected, denoised, spliced and compared with its source
// before it would be sent.
func Example() {
	file := dcmtest.MR(64, 64, 0).File(dcmtest.Form{})
	src, err := dcm.Scan(bytes.NewReader(file), int64(len(file)))
	if err != nil {
		fmt.Println(err)
		return
	}
	fmt.Println("source: ", derive.Inspect(src))

	var out bytes.Buffer
	_, err = derive.Write(&out, src, params(), func(i int) ([]float32, error) {
		f, err := derive.ReadFrame(src, i)
		if err != nil {
			return nil, err
		}
		return f.Pixels, nil // a real denoiser works here
	})
	if err != nil {
		fmt.Println(err)
		return
	}
	derived, err := dcm.Scan(bytes.NewReader(out.Bytes()), int64(out.Len()))
	if err != nil {
		fmt.Println(err)
		return
	}
	fmt.Println("verify: ", derive.Verify(src, derived))
	fmt.Println("derived:", derive.Inspect(derived))
	fmt.Println(derived.String(dcm.ImageType), derived.String(dcm.SeriesDescription))
	// Output:
	// source:  ok
	// verify:  <nil>
	// derived: already-denoised: by this product
	// DERIVED\PRIMARY\M\ND\DENOISED t1_se_tra DN
}

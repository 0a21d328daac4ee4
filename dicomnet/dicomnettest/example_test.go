package dicomnettest_test

import (
	"bytes"
	"context"
	"fmt"

	"github.com/diffdenoise/denoised/dicomnet"
	"github.com/diffdenoise/denoised/dicomnet/dicomnettest"
)

// A recorder behind an in-memory listener stands in for an archive.
func Example() {
	rec := &dicomnettest.Recorder{}
	l := dicomnettest.NewListener()
	srv := &dicomnet.Server{Handler: rec}
	go srv.Serve(l)
	defer srv.Close()

	const mr = "1.2.840.10008.5.1.4.1.1.4"
	ctx := context.Background()
	d := &dicomnet.Dialer{CalledAETitle: "ARCHIVE", NetDial: l.Dial}
	a, err := d.Dial(ctx, "archive:104", []dicomnet.PresentationContext{
		{AbstractSyntax: mr, TransferSyntaxes: []string{dicomnet.ImplicitVRLittleEndian}},
	})
	if err != nil {
		fmt.Println(err)
		return
	}
	_, err = a.Store(ctx, &dicomnet.StoreRequest{SOPClassUID: mr, SOPInstanceUID: "1.2.3", TransferSyntaxUID: dicomnet.ImplicitVRLittleEndian},
		bytes.NewReader(dicomnettest.Pattern(1000)))
	fmt.Println(err, a.Release(ctx), len(rec.Whole()), len(rec.Whole()[0].Data))
	// Output: <nil> <nil> 1 1000
}

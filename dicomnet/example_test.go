package dicomnet_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"

	"github.com/diffdenoise/denoised/dicomnet"
)

// archive keeps objects as they come. A real one syncs before it says success.
type archive struct{ out io.Writer }

func (a archive) Associate(_ context.Context, req *dicomnet.AssociateRequest) (dicomnet.Session, error) {
	if req.CalledAETitle != "ARCHIVE" {
		return nil, dicomnet.RejectCalledAETitle
	}
	return a, nil
}

func (a archive) Store(_ context.Context, req *dicomnet.StoreRequest, r io.Reader) dicomnet.Status {
	n, err := io.Copy(io.Discard, r)
	if err != nil {
		return dicomnet.StatusOutOfResources
	}
	fmt.Fprintf(a.out, "%s: %d bytes\n", req.SOPInstanceUID, n)
	return dicomnet.StatusSuccess
}

func (a archive) Close(error) {}

// A storage server and a client that sends to it.
func Example() {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		fmt.Println(err)
		return
	}
	srv := &dicomnet.Server{Handler: archive{os.Stdout}}
	go srv.Serve(l)

	ctx := context.Background()
	d := &dicomnet.Dialer{CallingAETitle: "MR1", CalledAETitle: "ARCHIVE"}
	a, err := d.Dial(ctx, l.Addr().String(), []dicomnet.PresentationContext{{
		AbstractSyntax:   "1.2.840.10008.5.1.4.1.1.4",
		TransferSyntaxes: []string{dicomnet.ExplicitVRLittleEndian},
	}})
	if err != nil {
		fmt.Println(err)
		return
	}
	status, err := a.Store(ctx, &dicomnet.StoreRequest{
		SOPClassUID: "1.2.840.10008.5.1.4.1.1.4", SOPInstanceUID: "1.2.3.4",
		TransferSyntaxUID: dicomnet.ExplicitVRLittleEndian,
	}, bytes.NewReader(make([]byte, 512*512*2)))
	fmt.Println(status, err)
	fmt.Println(a.Release(ctx), srv.Shutdown(ctx))
	// Output:
	// 1.2.3.4: 524288 bytes
	// 0x0000 (success) <nil>
	// <nil> <nil>
}

// A refused association says why, and whether to try again.
func ExampleDialer_Dial() {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		fmt.Println(err)
		return
	}
	srv := &dicomnet.Server{Handler: archive{io.Discard}}
	go srv.Serve(l)
	defer srv.Close()

	d := &dicomnet.Dialer{CalledAETitle: "NOBODY"}
	_, err = d.Dial(context.Background(), l.Addr().String(), []dicomnet.PresentationContext{{
		AbstractSyntax: dicomnet.VerificationSOPClass, TransferSyntaxes: []string{dicomnet.ImplicitVRLittleEndian},
	}})
	var refused *dicomnet.RejectError
	if errors.As(err, &refused) {
		fmt.Println(refused, refused.Transient())
	}
	// Output:
	// association rejected: called AE title not recognized (1/1/7) false
}

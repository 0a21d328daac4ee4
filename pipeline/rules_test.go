package pipeline

import (
	"bytes"
	"strings"
	"testing"

	"github.com/diffdenoise/denoised/pipeline/state"
)

func TestCheckRules(t *testing.T) {
	if err := CheckRules([]Rule{{Name: "hq", When: `ProtocolName endsWith "_HQ"`, Quality: High}, {Name: "maps", When: `ImageType contains "ADC" or SliceThickness > 5.0`, Quality: Off}}); err != nil {
		t.Error(err)
	}
	for name, r := range map[string]Rule{
		"misspelt": {Name: "misspelt", When: `ProtocolNam == "x"`, Quality: Fast},
		"syntax":   {Name: "syntax", When: `ProtocolName ==`, Quality: Fast},
		"type":     {Name: "type", When: `ProtocolName > 3`, Quality: Fast},
		"not-bool": {Name: "not-bool", When: `ProtocolName`, Quality: Fast},
		"quality":  {Name: "quality", When: `true`, Quality: "best"},
	} {
		if err := CheckRules([]Rule{r}); err == nil || !strings.Contains(err.Error(), name) {
			t.Errorf("%s: error %v", name, err)
		}
	}
}

func TestQualityPrecedence(t *testing.T) {
	o := options(t, nil)
	o.Rules = []Rule{
		{Name: "hq", When: `ProtocolName endsWith "_HQ"`, Quality: High},
		{Name: "no-scouts", When: `ProtocolName startsWith "scout"`, Quality: Off},
		{Name: "second", When: `ProtocolName startsWith "scout"`, Quality: High},
	}
	p := start(t, o)
	for i, c := range []struct {
		called, protocol string
		quality          Quality
		channel          state.Channel
		rule             string
		stage            state.Stage
	}{
		{"DENOISE", "t2", "fast", state.ChannelDefault, "", "denoised"},
		{"DENOISE", "t2_HQ", "high", state.ChannelRule, "hq", "denoised"},
		{"DENOISE", "scout", "off", state.ChannelRule, "no-scouts", "passed"},
		{"DENOISE_HQ", "scout", "high", state.ChannelAE, "", "denoised"},
		{"STORE", "t2_HQ", "off", state.ChannelAE, "", "passed"},
		{"UNKNOWN", "t2", "fast", state.ChannelDefault, "", "denoised"},
	} {
		im := slice(i+1, 1)
		im.protocol = c.protocol
		in := im.incoming()
		in.CalledAETitle = c.called
		if err := p.Receive(t.Context(), in, bytes.NewReader(im.dataSet())); err != nil {
			t.Fatal(err)
		}
		eventually(t, "slice done", func() bool { return status(t, p, im.series).Waiting == 0 })
		s := status(t, p, im.series)
		if s.Quality != c.quality || s.Channel != c.channel || s.Rule != c.rule || s.Instances[0].State != c.stage {
			t.Errorf("%s to %s: quality %s by %s %s, state %s; want %+v", c.protocol, c.called, s.Quality, s.Channel, s.Rule, s.Instances[0].State, c)
		}
	}
}

// Sending a series again to the other AE title is a wish for more.
func TestSecondSendRaisesQuality(t *testing.T) {
	a := newArchive()
	p := start(t, options(t, a))
	im := slice(1, 1)
	in := im.incoming()
	in.CalledAETitle = "STORE"
	for range 2 {
		if err := p.Receive(t.Context(), in, bytes.NewReader(im.dataSet())); err != nil {
			t.Fatal(err)
		}
	}
	if s := status(t, p, im.series); s.Quality != "off" || s.Received != 1 || s.Reasons["off"] != 1 {
		t.Fatalf("%+v", s)
	}
	in.CalledAETitle = "DENOISE_HQ"
	if err := p.Receive(t.Context(), in, bytes.NewReader(im.dataSet())); err != nil {
		t.Fatal(err)
	}
	eventually(t, "original and derived object in the archive", func() bool { return a.count("pacs") == 2 })
	if s := status(t, p, im.series); s.Quality != "high" || s.Channel != state.ChannelAE || s.Received != 1 {
		t.Errorf("%+v", s)
	}
	if n := len(a.copies("pacs", im.sop)); n != 1 {
		t.Errorf("original sent %d times", n)
	}
}

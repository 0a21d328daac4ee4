package pipeline

import (
	"fmt"

	"github.com/expr-lang/expr"
	"github.com/expr-lang/expr/vm"

	"github.com/diffdenoise/denoised/internal/dcm"
	"github.com/diffdenoise/denoised/pipeline/state"
)

type rule struct {
	name    string
	quality Quality
	prog    *vm.Program
}

// ruleEnv is what a rule may name: DICOM keywords with their types, and who sent the image.
func ruleEnv() map[string]any {
	env := dcm.KeywordTypes()
	env["CalledAETitle"], env["CallingAETitle"] = "", ""
	return env
}

func compileRules(rules []Rule) ([]rule, error) {
	env := ruleEnv()
	var out []rule
	for i, r := range rules {
		name := r.Name
		if name == "" {
			name = fmt.Sprintf("#%d", i+1)
		}
		if !r.Quality.Valid() {
			return nil, fmt.Errorf("rule %q: quality %q, need off, fast or high", name, r.Quality)
		}
		prog, err := expr.Compile(r.When, expr.Env(env), expr.AsBool())
		if err != nil {
			return nil, fmt.Errorf("rule %q: %w", name, err)
		}
		out = append(out, rule{name: name, quality: r.Quality, prog: prog})
	}
	return out, nil
}

// CheckRules compiles rules. The error names the rule and the place in it.
func CheckRules(rules []Rule) error {
	_, err := compileRules(rules)
	return err
}

// decision is a quality and who decided it.
type decision struct {
	quality Quality
	channel state.Channel
	rule    string
}

// decide applies the precedence: a called AE title that asks for high or off is
// a wish for this very series and wins; then the rules; then the AE title's
// fast, which is no more than the default. A rule that fails on an object is
// skipped and reported.
func decide(rules []rule, asked Quality, o *dcm.Object, in Incoming) (d decision, failed error) {
	if asked == High || asked == Off {
		return decision{quality: asked, channel: state.ChannelAE}, nil
	}
	if len(rules) > 0 && o != nil {
		env := o.Keywords()
		env["CalledAETitle"], env["CallingAETitle"] = in.CalledAETitle, in.CallingAETitle
		for _, r := range rules {
			out, err := expr.Run(r.prog, env)
			if err != nil {
				failed = fmt.Errorf("rule %q: %w", r.name, err)
				continue
			}
			if out == true {
				return decision{quality: r.quality, channel: state.ChannelRule, rule: r.name}, failed
			}
		}
	}
	return decision{quality: Fast, channel: state.ChannelDefault}, failed
}

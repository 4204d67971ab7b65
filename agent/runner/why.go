package runner

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"strings"
	"time"

	atelier "github.com/atelier-edge/atelier"
	"github.com/atelier-edge/atelier/targets"
)

// The exit codes with which atelier-serve says what it could not load, that its
// model gives other outputs than it should, and that its scoring script failed; see
// docs/architecture.md.
const (
	exitModel   = 65
	exitRuntime = 69
	exitGolden  = 70
	exitMemory  = 71
	exitScript  = 76
)

// crashes is how many failures in a row make a crash loop.
const crashes = 5

// maxLine bounds what of a module's last words goes into a message. A script's
// have its output with them, at most as much as a target remembers of a line.
const (
	maxLine       = 500
	maxScriptLine = 4 << 10
)

// lineSeparator stands for the ends of lines within a module's last line.
const lineSeparator = "\u2028"

// refusal is an error that comes with its reason. Where it is final no second
// attempt can mend it.
type refusal struct {
	why   atelier.Why
	final bool
}

func (e *refusal) Error() string { return e.why.Message() }

// startError is an error of Target.Start.
type startError struct{ err error }

func (e *startError) Error() string { return e.err.Error() }
func (e *startError) Unwrap() error { return e.err }

// probeError says that a module runs and does not answer.
type probeError struct{ err error }

func (e *probeError) Error() string { return e.err.Error() }
func (e *probeError) Unwrap() error { return e.err }

// exitError says how a module ended.
type exitError struct {
	exit     *targets.Exit
	limit    int64 // of its memory in bytes, 0 for none
	wasReady bool
	loading  bool // it is one of several models, and its server goes on
	foreign  bool // its exit codes mean what its image says, not what atelier-serve's do
}

func (e *exitError) Error() string {
	if e.exit == nil {
		return "it ended, and nobody knows how"
	}
	text, most := fmt.Sprintf("it ended with exit code %d", e.exit.Code), maxLine
	switch {
	case e.exit.OutOfMemory && e.limit > 0:
		return fmt.Sprintf("it used more memory than its limit of %s, and was ended", atelier.FormatBytes(e.limit))
	case e.exit.OutOfMemory:
		return "the device ran out of memory, and the system ended it"
	case e.exit.Signal != "":
		text = fmt.Sprintf("it was ended by signal %q", e.exit.Signal)
	case e.foreign:
	case e.exit.Code == exitModel:
		text, most = "its model cannot be loaded", maxScriptLine
	case e.exit.Code == exitRuntime:
		text = "its runtime cannot be loaded"
	case e.exit.Code == exitScript:
		text, most = "its scoring script failed", maxScriptLine
	case e.exit.Code == exitGolden:
		text, most = "its model does not pass its golden inputs", maxScriptLine
	case e.exit.Code == exitMemory:
		return strings.ToValidUTF8(e.exit.LastLine[:min(len(e.exit.LastLine), maxLine)], "")
	case e.loading:
		text = "its model was not loaded"
	}
	if line := strings.TrimSpace(e.exit.LastLine); line != "" {
		text += ": " + strings.ReplaceAll(strings.ToValidUTF8(line[:min(len(line), most)], ""), lineSeparator, "\n")
	}
	return text
}

func (e *exitError) reason() atelier.Reason {
	switch {
	case e.exit != nil && e.exit.OutOfMemory:
		return atelier.ReasonOutOfMemory
	case e.foreign && e.wasReady:
		return atelier.ReasonCrashed
	case e.foreign:
		return atelier.ReasonStartFailed
	case e.exit != nil && e.exit.Code == exitModel:
		return atelier.ReasonInitFailed
	case e.exit != nil && e.exit.Code == exitRuntime:
		return atelier.ReasonRuntimeMissing
	case e.exit != nil && e.exit.Code == exitScript:
		return atelier.ReasonScriptFailed
	case e.exit != nil && e.exit.Code == exitGolden:
		return atelier.ReasonGoldenFailed
	case e.exit != nil && e.exit.Code == exitMemory:
		return atelier.ReasonMemoryShort
	case e.wasReady:
		return atelier.ReasonCrashed
	}
	return atelier.ReasonStartFailed
}

// explain returns why an attempt failed, the given number in a row; final
// tells that there is no use in another.
func (i *instance) explain(err error, failures int) (why atelier.Why, final bool) {
	var (
		refused *refusal
		exited  *exitError
		start   *startError
		probe   *probeError
	)
	if errors.As(err, &refused) {
		return refused.why, refused.final
	}
	reason := reasonOf(err)
	switch {
	case errors.As(err, &exited):
		reason = exited.reason()
		if failures >= crashes && (reason == atelier.ReasonCrashed || reason == atelier.ReasonStartFailed) {
			why = atelier.Because(atelier.ReasonCrashLoop, fmt.Sprintf("%d failures in a row; the last: %v", failures, err))
			return why.WithRemedy(i.remedy(why)), false
		}
	case errors.As(err, &probe):
		reason = atelier.ReasonProbeFailed
	case errors.As(err, &start) && reason == atelier.ReasonUnreachable:
		reason = atelier.ReasonDriverDown
	}
	why = atelier.BecauseOf(reason, err)
	if why.Remedy() == atelier.Because(reason, "").Remedy() {
		why = why.WithRemedy(i.remedy(why)) // nobody knew better
	}
	return why, false
}

// remedy is what to do about a module, by the command where there is one.
func (i *instance) remedy(why atelier.Why) string {
	m := &i.module
	log := fmt.Sprintf("Read its log with 'atelier device logs %s %s'", i.runner.opts.Name, m.Name)
	switch why.Reason() {
	case atelier.ReasonInitFailed:
		return log + "; register a model that the runtime can load."
	case atelier.ReasonScriptFailed:
		return log + "; correct the script or its environment, and register the model again."
	case atelier.ReasonGoldenFailed:
		return log + "; register a model, or golden inputs, that are right for this device."
	case atelier.ReasonCrashLoop:
		return log + ", and deploy a version that works."
	case atelier.ReasonStartFailed, atelier.ReasonCrashed, atelier.ReasonProbeFailed:
		return log + "."
	case atelier.ReasonMemoryShort:
		if shared(m) && m.Limits.Memory > 0 {
			return fmt.Sprintf("Raise the limit of all models of server %s with 'atelier deploy MODEL --memory SIZE', let this one run in another, or deploy a smaller model.", m.Serving.Server)
		}
	case atelier.ReasonOutOfMemory:
		if m.Image != nil {
			return fmt.Sprintf("Raise the limit with 'atelier deploy --image %s --name %s --memory SIZE', or let it take less.", m.Image.Reference, m.Name)
		}
		return fmt.Sprintf("Raise the limit with 'atelier deploy %s:%d --name %s --memory SIZE', or deploy a smaller model.", m.Model.Name, m.Model.Version, m.Name)
	}
	return why.Remedy()
}

// reasonOf maps the codes of errors that steps pass on.
func reasonOf(err error) atelier.Reason {
	var start *startError
	switch code := atelier.CodeOf(err); {
	case code == atelier.NoSpace:
		return atelier.ReasonNoSpace
	case code == atelier.Unsupported && errors.As(err, &start):
		return atelier.ReasonVariantMissing
	case code == atelier.Corrupt:
		return atelier.ReasonDigestMismatch
	case code == atelier.Unavailable, code == atelier.Timeout:
		return atelier.ReasonUnreachable
	case errors.As(err, &start):
		return atelier.ReasonStartFailed
	case code == atelier.NotFound:
		return atelier.ReasonContentGone
	}
	return atelier.ReasonStartFailed
}

// backoff is the pause after the given number of failures in a row: doubled each
// time, at most most, and shortened by up to a quarter by chance, so that modules
// that failed together do not come back together.
func backoff(first, most time.Duration, failures int) time.Duration {
	pause := most
	if n := failures - 1; n < 30 && first<<n < most {
		pause = first << n
	}
	return pause - time.Duration(rand.Int64N(int64(pause/4)+1))
}

package trust

import (
	"errors"

	atelier "github.com/atelier-edge/atelier"
)

// Error says why something is not trusted. An *atelier.Error with the code for
// remote callers stands behind it (errors.As finds both): Invalid for what is
// malformed, Unauthenticated for what does not verify, Stale for what was replaced.
type Error struct {
	// Reason is ReasonSignatureInvalid, ReasonKeyUnknown or ReasonReplayed; for images
	// ReasonImageUnsigned or ReasonImageSignatureWrong.
	Reason atelier.Reason
	Err    *atelier.Error
}

func (e *Error) Error() string { return e.Err.Message }

// Unwrap returns the *atelier.Error.
func (e *Error) Unwrap() error { return e.Err }

// WhyOf returns the reason for err, for conditions and refusals: that of the
// first *Error in its chain, otherwise ReasonSignatureInvalid with err's message.
func WhyOf(err error) atelier.Why {
	var e *Error
	if errors.As(err, &e) {
		return atelier.Because(e.Reason, e.Err.Message)
	}
	return atelier.Because(atelier.ReasonSignatureInvalid, err.Error())
}

func malformed(format string, args ...any) error {
	return &Error{atelier.ReasonSignatureInvalid, atelier.Errorf(atelier.Invalid, format, args...)}
}

func unverified(format string, args ...any) error {
	return &Error{atelier.ReasonSignatureInvalid, atelier.Errorf(atelier.Unauthenticated, format, args...)}
}

func unknownKey(format string, args ...any) error {
	return &Error{atelier.ReasonKeyUnknown, atelier.Errorf(atelier.Unauthenticated, format, args...)}
}

func replayed(format string, args ...any) error {
	return &Error{atelier.ReasonReplayed, atelier.Errorf(atelier.Stale, format, args...)}
}

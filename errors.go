package atelier

import (
	"errors"
	"fmt"
	"log/slog"
)

// Code classifies an error for callers that branch on it. There are few, and
// each maps to one HTTP status and one exit code of the command line.
type Code string

// The codes. Whatever has no code counts as Internal.
const (
	Invalid         Code = "invalid"         // the request is malformed
	Unauthenticated Code = "unauthenticated" // no or no valid credential came
	Forbidden       Code = "forbidden"       // the caller may not do this
	NotFound        Code = "not_found"       // no such thing, or none that the caller may see
	Exists          Code = "exists"          // the name is taken
	Conflict        Code = "conflict"        // the thing is in a state that does not allow this
	Stale           Code = "stale"           // the thing changed since the caller read it
	InUse           Code = "in_use"          // something else still needs the thing
	TooLarge        Code = "too_large"       // over a limit of size
	Unsupported     Code = "unsupported"     // understood, but not something that this program does
	Exhausted       Code = "exhausted"       // a quota or a rate is used up
	NoSpace         Code = "no_space"        // the disk is full
	Unavailable     Code = "unavailable"     // not now; try again
	Timeout         Code = "timeout"         // it took too long
	Corrupt         Code = "corrupt"         // stored or received content is not what its digest says
	Internal        Code = "internal"        // a fault of this program
)

// httpStatus is the one table from codes to HTTP.
var httpStatus = map[Code]int{
	Invalid: 400, Unauthenticated: 401, Forbidden: 403, NotFound: 404,
	Exists: 409, Conflict: 409, Stale: 412, InUse: 409, TooLarge: 413,
	Unsupported: 422, Exhausted: 429, NoSpace: 507, Unavailable: 503,
	Timeout: 504, Corrupt: 500, Internal: 500,
}

// HTTPStatus returns the HTTP status that stands for c; 500 for an unknown code.
func (c Code) HTTPStatus() int {
	if s, ok := httpStatus[c]; ok {
		return s
	}
	return 500
}

// Error is an error that people read and callers branch on. Message says what
// came and what was expected, Remedy what to do about it.
type Error struct {
	Code    Code   `json:"code"`
	Message string `json:"message"`
	Remedy  string `json:"remedy,omitempty"`
	Field   string `json:"field,omitempty"` // the part of the input that is wrong, where there is one
	Err     error  `json:"-"`               // the cause; never shown to remote callers
}

// Errorf makes an Error with a formatted message. A wrapped %w becomes its cause.
func Errorf(code Code, format string, args ...any) *Error {
	err := fmt.Errorf(format, args...)
	return &Error{Code: code, Message: err.Error(), Err: errors.Unwrap(err)}
}

// WithRemedy sets the sentence that says what to do, and returns e.
func (e *Error) WithRemedy(format string, args ...any) *Error {
	e.Remedy = fmt.Sprintf(format, args...)
	return e
}

// WithField names the part of the input that is wrong, and returns e.
func (e *Error) WithField(field string) *Error {
	e.Field = field
	return e
}

// Error returns the message alone; Remedy is for whoever shows it.
func (e *Error) Error() string { return e.Message }

// Unwrap returns the cause.
func (e *Error) Unwrap() error { return e.Err }

// LogValue writes code, message and remedy into a log.
func (e *Error) LogValue() slog.Value {
	attrs := []slog.Attr{slog.String("code", string(e.Code)), slog.String("message", e.Message)}
	if e.Remedy != "" {
		attrs = append(attrs, slog.String("remedy", e.Remedy))
	}
	return slog.GroupValue(attrs...)
}

// CodeOf returns the code of the first *Error in err's chain, Internal where
// there is none, and "" for nil.
func CodeOf(err error) Code {
	if err == nil {
		return ""
	}
	var e *Error
	if errors.As(err, &e) {
		return e.Code
	}
	return Internal
}

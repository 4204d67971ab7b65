package serving

import (
	"context"
	"encoding/json"
	"errors"
	"net/http"
	"strconv"

	atelier "github.com/atelier-edge/atelier"
)

// HeaderLength is the header field that tells how long the JSON is that comes
// before binary tensors.
const HeaderLength = "Inference-Header-Content-Length"

// retryAfter is when a client that was turned away may try again, in seconds: the
// queue is some runs of the model long, and seconds are the smallest that HTTP knows.
const retryAfter = 1

// Answer is the answer to one request, whatever carries it.
type Answer struct {
	Status       int
	ContentType  string
	HeaderLength int // what the field of this name says; 0 where there is none
	// RetryAfter is after how many seconds another attempt may do better; 0 where that
	// is not for the server to say.
	RetryAfter int
	// Fallback is the provider that answered in the place of another, "" mostly.
	Fallback string
	Body     []byte
}

// AppendFields appends the header fields that the answer has besides its type and
// its length, each with the line's end.
func (a *Answer) AppendFields(b []byte) []byte {
	for _, f := range [...]struct {
		name  string
		value int
	}{{HeaderLength, a.HeaderLength}, {"Retry-After", a.RetryAfter}} {
		if f.value > 0 {
			b = append(append(b, f.name...), ": "...)
			b = append(strconv.AppendInt(b, int64(f.value), 10), "\r\n"...)
		}
	}
	if a.Fallback != "" {
		b = append(append(append(append(b, atelier.HeaderFallback...), ": "...), a.Fallback...), "\r\n"...)
	}
	return b
}

// Infer answers an inference of Open Inference Protocol v2. headerLength is what
// the field HeaderLength of the request says, "" where it has none. Nothing of body
// is kept.
func (h *Handler) Infer(ctx context.Context, headerLength string, body []byte) Answer {
	a, err := h.tryInfer(ctx, headerLength, body)
	if err != nil {
		return h.failed("infer", err)
	}
	a.Fallback = h.fallback()
	return a
}

// Score answers a POST /score. Nothing of body is kept.
func (h *Handler) Score(ctx context.Context, body []byte) Answer {
	m, err := h.loaded()
	if err != nil {
		return h.failed("score", err)
	}
	answer, err := m.score(ctx, body)
	if err != nil {
		return h.failed("score", err)
	}
	return Answer{Status: http.StatusOK, ContentType: "application/json", Fallback: h.fallback(), Body: answer}
}

func (h *Handler) tryInfer(ctx context.Context, headerLength string, body []byte) (Answer, error) {
	m, err := h.loaded()
	if err != nil {
		return Answer{}, err
	}
	head, tail := body, []byte(nil)
	if headerLength != "" {
		n, err := strconv.Atoi(headerLength)
		if err != nil || n < 0 || n > len(body) {
			return Answer{}, atelier.Errorf(atelier.Invalid, "%s is %.40q, at most the body's %d bytes were expected", HeaderLength, headerLength, len(body)).
				WithField(HeaderLength)
		}
		head, tail = body[:n], body[n:]
	}
	req, inputs, err := m.decodeInfer(head, tail)
	if err != nil {
		return Answer{}, err
	}
	wanted, err := m.wanted(req)
	if err != nil {
		return Answer{}, err
	}
	indices := make([]int, len(wanted))
	for i := range wanted {
		indices[i] = wanted[i].index
	}
	outputs, err := m.infer(ctx, inputs, indices)
	if err != nil {
		return Answer{}, err
	}
	answer, headLen, binaryForm, err := m.encodeInfer(req.ID, wanted, outputs)
	if err != nil {
		return Answer{}, err
	}
	if binaryForm {
		return Answer{Status: http.StatusOK, ContentType: "application/octet-stream", HeaderLength: headLen, Body: answer}, nil
	}
	return Answer{Status: http.StatusOK, ContentType: "application/json", Body: answer}, nil
}

type errorBody struct {
	Error  string       `json:"error"`
	Code   atelier.Code `json:"code"`
	Field  string       `json:"field,omitempty"`
	Remedy string       `json:"remedy,omitempty"`
}

// failed makes the answer that tells of err. What no client could have caused is
// logged.
func (h *Handler) failed(path string, err error) Answer {
	code := atelier.CodeOf(err)
	body := errorBody{Error: err.Error(), Code: code}
	var e *atelier.Error
	if errors.As(err, &e) {
		body.Field, body.Remedy = e.Field, e.Remedy
	}
	if code == atelier.Internal {
		h.log.Error("a request failed", "path", path, "error", err)
	}
	text, failed := json.Marshal(body)
	if failed != nil { // of strings: it does not happen
		text = []byte(`{"error":"the answer cannot be encoded","code":"internal"}`)
	}
	a := Answer{Status: code.HTTPStatus(), ContentType: "application/json", Body: text}
	var own interface{ HTTPStatus() int }
	if errors.As(err, &own) {
		a.Status = own.HTTPStatus() // what no code stands for
	}
	if code == atelier.Exhausted || code == atelier.Unavailable {
		a.RetryAfter = retryAfter
	}
	return a
}

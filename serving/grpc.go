package serving

import (
	"context"
	"net/http"
	"strings"

	atelier "github.com/atelier-edge/atelier"
	"github.com/atelier-edge/atelier/internal/collect"
	"github.com/atelier-edge/atelier/serving/grpc"
)

// grpcService is what Open Inference Protocol v2 calls its service.
const grpcService = "/inference.GRPCInferenceService/"

// serveGRPC answers a call.
func (h *Handler) serveGRPC(w http.ResponseWriter, r *http.Request) {
	if r.ProtoMajor < 2 || r.Method != http.MethodPost {
		h.fail(w, r, atelier.Errorf(atelier.Unsupported, "%s over %s came with Content-Type application/grpc, POST over HTTP/2 was expected", r.Method, r.Proto))
		return
	}
	grpc.Begin(w)
	message, err := h.call(w, r)
	if err != nil {
		if atelier.CodeOf(err) == atelier.Internal {
			h.log.Error("a request failed", "path", r.URL.Path, "error", err)
		}
		grpc.Fail(w, err)
		return
	}
	grpc.Finish(message)
	if _, err := w.Write(message); err != nil {
		h.log.Debug("a client did not take its answer", "error", err)
	}
	grpc.End(w)
}

// call answers one call. The message that it returns has room for its prefix.
func (h *Handler) call(w http.ResponseWriter, r *http.Request) ([]byte, error) {
	name, ours := strings.CutPrefix(r.URL.Path, grpcService)
	method := grpcMethods[name]
	if !ours || method == nil {
		return nil, atelier.Errorf(atelier.Unsupported, "there is no call %.200s", r.URL.Path).
			WithRemedy("Use ServerLive, ServerReady, ModelReady, ServerMetadata, ModelMetadata or ModelInfer of inference.GRPCInferenceService.")
	}
	ctx := r.Context()
	if timeout := r.Header.Get("Grpc-Timeout"); timeout != "" {
		d, ok := grpc.Timeout(timeout)
		if !ok {
			return nil, atelier.Errorf(atelier.Invalid, "grpc-timeout is %.40q, up to 8 digits and one of H, M, S, m, u and n were expected", timeout)
		}
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, d)
		defer cancel()
	}
	body, free, err := h.body(w, r)
	if err != nil {
		return nil, err
	}
	defer free()
	message, err := grpc.Message(body)
	if err != nil {
		return nil, err
	}
	var x *collect.Sample
	if name == "ModelInfer" {
		x = h.sampler.Begin(collect.DialectGRPC, r.Header.Get(atelier.HeaderRequestID))
	}
	answer, err := method(h, collect.With(ctx, x), message, make([]byte, grpc.Prefix, 256))
	status := http.StatusOK
	if err != nil {
		status = atelier.CodeOf(err).HTTPStatus()
	}
	x.End(status)
	return answer, err
}

package gateway

import (
	"encoding/json"
	"errors"
	"io"
	"net/http"

	atelier "github.com/atelier-edge/atelier"
)

// maxTable bounds a route table, in bytes.
const maxTable = 4 << 20

// Control answers the agent: PUT /routes puts an atelier.RouteTable into force, and
// GET /status returns an atelier.GatewayStatus. Whoever reaches it decides what the
// device answers; it belongs on a socket that only the agent's user can open.
func (g *Gateway) Control() http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("PUT /routes", func(w http.ResponseWriter, r *http.Request) {
		body, err := io.ReadAll(http.MaxBytesReader(w, r.Body, maxTable))
		if err != nil {
			g.reply(w, nil, atelier.Errorf(atelier.Invalid, "the route table cannot be read: %w", err))
			return
		}
		var table atelier.RouteTable
		if err := json.Unmarshal(body, &table); err != nil {
			g.reply(w, nil, atelier.Errorf(atelier.Invalid, "the route table is malformed: %w", err))
			return
		}
		if err := g.Apply(table); err != nil {
			g.reply(w, nil, err)
			return
		}
		g.opts.Log.Info("new routes are in force", "sequence", table.Sequence, "routes", len(table.Routes))
		g.reply(w, map[string]any{"sequence": table.Sequence}, nil)
	})
	mux.HandleFunc("GET /status", func(w http.ResponseWriter, _ *http.Request) { g.reply(w, g.Status(), nil) })
	return mux
}

// reply writes v, or err as problem details.
func (g *Gateway) reply(w http.ResponseWriter, v any, err error) {
	status, contentType := http.StatusOK, "application/json"
	if err != nil {
		code := atelier.CodeOf(err)
		status, contentType = code.HTTPStatus(), "application/problem+json"
		p := problem{Type: "about:blank", Title: http.StatusText(status), Status: status, Detail: err.Error(), Code: code}
		var e *atelier.Error
		if errors.As(err, &e) {
			p.Remedy, p.Field = e.Remedy, e.Field
		}
		v = p
	}
	w.Header().Set("Content-Type", contentType)
	w.WriteHeader(status)
	if err := json.NewEncoder(w).Encode(v); err != nil {
		g.opts.Log.Debug("the agent did not take its answer", "error", err)
	}
}

package agent

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"path/filepath"
	"strings"
	"time"

	atelier "github.com/atelier-edge/atelier"
	"github.com/atelier-edge/atelier/agent/bundles"
	"github.com/atelier-edge/atelier/internal/bundle"
)

// imported is a running agent's answer to who asked it to import a bundle.
type imported struct {
	Done  bundles.Imported `json:"done"`
	Error *atelier.Error   `json:"error,omitempty"`
}

// Import imports the bundle at path, an absolute one: the agent that runs with the
// places does so, or where none runs Import itself; the agent then acts on it when
// it starts. The bundle stays where it is. The error is an *atelier.Error that
// begins with the reason.
func Import(ctx context.Context, opts Options, path string) (bundles.Imported, error) {
	if !filepath.IsAbs(path) {
		return bundles.Imported{}, atelier.Errorf(atelier.Invalid, "%q is no absolute path", path)
	}
	places, err := NewPlaces(opts.Config)
	if err != nil {
		return bundles.Imported{}, err
	}
	if c, err := new(net.Dialer).DialContext(ctx, "unix", places.importSocket()); err == nil {
		return ask(ctx, c, path)
	}
	var done bundles.Imported
	err = with(opts, func(a *agent) error {
		done, err = a.bundles.Import(ctx, path)
		if err != nil {
			return refused(err)
		}
		return nil
	})
	return done, err
}

// ask asks a running agent, whose connection it closes.
func ask(ctx context.Context, c net.Conn, path string) (bundles.Imported, error) {
	defer func() { _ = c.Close() }() // the answer is there, or is given up
	stop := context.AfterFunc(ctx, func() { _ = c.SetDeadline(time.Now()) })
	defer stop()
	var a imported
	_, err := fmt.Fprintln(c, path)
	if err == nil {
		err = json.NewDecoder(io.LimitReader(c, maxStatus)).Decode(&a)
	}
	if err != nil {
		return a.Done, atelier.Errorf(atelier.Unavailable, "the agent's answer broke off: %w", err).
			WithRemedy("'atelier-agent status' tells what became of the bundle.")
	}
	if a.Error != nil {
		return a.Done, a.Error
	}
	return a.Done, nil
}

// maxPath bounds the path that a caller may name, as Linux does.
const maxPath = 4096

// importAsked imports the bundle whose path a caller writes as one line.
func (a *agent) importAsked(ctx context.Context, c net.Conn) (any, error) {
	if err := c.SetReadDeadline(time.Now().Add(tellTime)); err != nil {
		return nil, err
	}
	path, err := bufio.NewReader(io.LimitReader(c, maxPath+1)).ReadString('\n')
	if err != nil {
		return nil, err
	}
	var answer imported
	answer.Done, err = a.bundles.Import(ctx, strings.TrimSuffix(path, "\n"))
	answer.Error = refused(err)
	return answer, nil
}

// refused turns why a bundle was not imported into an error for people.
func refused(err error) *atelier.Error {
	if err == nil {
		return nil
	}
	why := bundle.WhyOf(err)
	return atelier.Errorf(atelier.CodeOf(err), "%s: %s", why.Reason(), why.Message()).WithRemedy("%s", why.Remedy())
}

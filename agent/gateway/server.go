package gateway

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/url"

	atelier "github.com/atelier-edge/atelier"
)

// maxFailure bounds what a server of several models may say of one.
const maxFailure = 64 << 10

// Load lets the server of several models whose control socket is at path load one under
// an id, with the arguments that atelier-serve would be started with for it. It returns
// when the model serves; a model that cannot be loaded gives an *atelier.LoadError.
func Load(ctx context.Context, path, id string, args []string) error {
	body, err := json.Marshal(atelier.ModelLoad{Args: args})
	if err != nil {
		return err
	}
	status, answer, err := askServer(ctx, path, http.MethodPut, id, body)
	if err != nil || status == http.StatusOK {
		return err
	}
	var failure atelier.ModelFailure
	if status == http.StatusUnprocessableEntity && json.Unmarshal(answer, &failure) == nil {
		return &atelier.LoadError{ModelFailure: failure}
	}
	return fmt.Errorf("the model server answered %d when a model was to be loaded: %.300s", status, answer)
}

// Unload lets the server unload a model and returns when that has answered its last
// request. One that is not loaded is unloaded.
func Unload(ctx context.Context, path, id string) error {
	status, answer, err := askServer(ctx, path, http.MethodDelete, id, nil)
	if err == nil && status/100 != 2 {
		err = fmt.Errorf("the model server answered %d when a model was to be unloaded: %.300s", status, answer)
	}
	return err
}

func askServer(ctx context.Context, path, method, id string, body []byte) (status int, answer []byte, err error) {
	req, err := http.NewRequestWithContext(ctx, method, "http://server/models/"+url.PathEscape(id), bytes.NewReader(body))
	if err != nil {
		return 0, nil, err
	}
	client := http.Client{Transport: overSocket(path)}
	resp, err := client.Do(req)
	if err != nil {
		return 0, nil, atelier.Errorf(atelier.Unavailable, "the model server does not answer: %w", err)
	}
	defer func() { _ = resp.Body.Close() }() // all of it that counts was read
	answer, err = io.ReadAll(io.LimitReader(resp.Body, maxFailure))
	if err != nil {
		return 0, nil, atelier.Errorf(atelier.Unavailable, "the model server's answer broke off: %w", err)
	}
	return resp.StatusCode, answer, nil
}

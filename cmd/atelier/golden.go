package main

import (
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"strings"
	"time"

	"github.com/spf13/cobra"

	atelier "github.com/atelier-edge/atelier"
)

// answerTime is how long a reference run may take to answer one input.
const answerTime = time.Minute

func (a *app) modelGolden() *cobra.Command {
	var (
		inputs, endpoint, url, key, output string
		route                              string
		tolerance                          = atelier.DefaultTolerance
		latency                            time.Duration
	)
	cmd := &cobra.Command{
		Use:   "golden MODEL --inputs FILE",
		Short: "Record golden inputs, which versions must pass on a device before they take traffic",
		Long: `Record golden inputs from a reference run: send each input to an endpoint that is known to be right, and write the inputs with
its answers to golden.json. Register that file beside the model: each device then runs the version on these inputs before it takes traffic. Where an
output is not what it should be, or the median time is longer than --latency, the version is not used, the one before goes on, and
'atelier why' says which output it was.

FILE is a list of inference requests of Open Inference Protocol v2, in JSON: [{"id": "three", "inputs": [...]}, ...]. The id names the case. The
reference is an endpoint of the workspace (--endpoint, the model's name by default), or any server of the protocol (--url, up to but not with /v2).

For a scoring script, --route score sends each item of FILE as the body of a POST /score, and keeps the whole answer: [{"data": [[2, 1, 1]]}, ...]. Its
cases are named by their place.`,
		Example: `  atelier model golden digits --inputs inputs.json
  atelier model golden digits --inputs inputs.json --url http://127.0.0.1:8000 --latency 20ms --output export/golden.json
  atelier model golden churn --route score --inputs bodies.json --output churn/golden.json`,
		Args: exactly(1),
		RunE: func(cmd *cobra.Command, args []string) (err error) {
			switch {
			case inputs == "":
				return errUsage{errors.New("--inputs is missing: a file of inference requests; see 'atelier model golden --help'")}
			case endpoint != "" && url != "":
				return errUsage{errors.New("--endpoint and --url do not go together; one of them answers")}
			case route != "infer" && route != atelier.GoldenScore:
				return errUsage{fmt.Errorf("--route is %q; infer or score was expected", route)}
			case latency < 0:
				return errUsage{fmt.Errorf("--latency is %v; it must not be negative", latency)}
			}
			requests, err := readInputs(inputs)
			if err != nil {
				return err
			}
			ref := reference{model: args[0], url: strings.TrimSuffix(url, "/"), key: key, score: route == atelier.GoldenScore}
			if url == "" {
				if ref.url, ref.key, err = a.reference(cmd.Context(), cmp.Or(endpoint, args[0])); err != nil {
					return err
				}
			}
			golden := atelier.NewGolden(tolerance, latency)
			if ref.score {
				golden.Route = atelier.GoldenScore
			}
			for i, request := range requests {
				c, err := ref.record(cmd.Context(), i, request)
				if err != nil {
					return err
				}
				golden.Cases = append(golden.Cases, c)
			}
			text, err := json.Marshal(golden)
			if err != nil {
				return err
			}
			if _, err := atelier.ParseGolden(text); err != nil {
				return err // two inputs of the same id, a tolerance that is none
			}
			text = append(text, '\n')
			if output == "-" {
				_, err = cmd.OutOrStdout().Write(text)
				return err
			}
			if err := os.WriteFile(output, text, 0o644); err != nil {
				return atelier.Errorf(atelier.Invalid, "write the golden inputs: %w", err)
			}
			a.say("Recorded %s from %s in %s", count(len(golden.Cases), "golden input", "golden inputs"), ref.url, output)
			return nil
		},
	}
	f := cmd.Flags()
	f.StringVar(&inputs, "inputs", "", "the `FILE` of inputs, - for standard input")
	f.StringVar(&endpoint, "endpoint", "", "the endpoint that answers (default: the model's name)")
	f.StringVar(&url, "url", "", "instead of an endpoint, the `URL` of a server of Open Inference Protocol v2")
	f.StringVar(&route, "route", "infer", "infer, or score for a scoring script")
	f.StringVar(&key, "key", "", "the key that the server of --url asks for")
	f.StringVar(&output, "output", atelier.GoldenPath, "the `FILE` to write, - for standard output")
	f.DurationVar(&latency, "latency", 0, "bound of the median time of an inference on a device (0: none)")
	f.Float64Var(&tolerance.Absolute, "absolute", tolerance.Absolute, "how far an output may be off, as a number")
	f.Float64Var(&tolerance.Relative, "relative", tolerance.Relative, "and besides, as a part of what is expected")
	f.Int64Var(&tolerance.Integer, "integer", 0, "how far a whole number may be off")
	return cmd
}

// readInputs reads a list of inference requests.
func readInputs(path string) (requests []json.RawMessage, err error) {
	var text []byte
	if path == "-" {
		text, err = io.ReadAll(io.LimitReader(os.Stdin, atelier.MaxGoldenSize+1))
	} else {
		text, err = os.ReadFile(path)
	}
	if err != nil {
		return nil, atelier.Errorf(atelier.Invalid, "read the inputs: %w", err)
	}
	if err := json.Unmarshal(text, &requests); err != nil {
		return nil, atelier.Errorf(atelier.Invalid, "%s is no list of inference requests: %w", path, err).
			WithRemedy(`It looks like [{"id": "three", "inputs": [{"name": "x", "shape": [1], "datatype": "FP32", "data": [3]}]}].`)
	}
	if len(requests) == 0 || len(requests) > atelier.MaxGoldenCases {
		return nil, atelier.Errorf(atelier.Invalid, "%s has %d inputs, 1 to %d were expected", path, len(requests), atelier.MaxGoldenCases)
	}
	return requests, nil
}

// reference finds an address at which an endpoint answers, and its key.
func (a *app) reference(ctx context.Context, endpoint string) (url, key string, err error) {
	cl, ws, err := a.open()
	if err != nil {
		return "", "", err
	}
	e, err := cl.Endpoint(ctx, ws, endpoint)
	if err != nil {
		return "", "", err
	}
	for _, at := range e.Addresses {
		if at.State == atelier.Serving && at.URL != "" {
			url = strings.TrimSuffix(at.URL, "/")
		}
	}
	if url == "" {
		return "", "", atelier.Errorf(atelier.Unavailable, "no device answers for endpoint %s now", e.Name).
			WithRemedy("See 'atelier endpoint show %s', or name another server with --url.", e.Name)
	}
	keys, err := cl.Keys(ctx, ws, endpoint)
	return url, keys.Primary, err
}

// reference is a server that answers what is right.
type reference struct {
	model, url, key string
	score           bool // it is asked by POST /score
}

// record sends one input and keeps the outputs that come back.
func (r *reference) record(ctx context.Context, number int, request json.RawMessage) (c atelier.GoldenCase, err error) {
	var head struct {
		ID string `json:"id"`
	}
	if err := json.Unmarshal(request, &head); err != nil && !r.score {
		return c, atelier.Errorf(atelier.Invalid, "input %d is no inference request: %w", number+1, err)
	}
	at := r.url + "/v2/models/" + r.model + "/infer"
	if r.score {
		at, head.ID = r.url+"/score", ""
	}
	c = atelier.GoldenCase{Name: cmp.Or(head.ID, fmt.Sprintf("case %d", number+1)), Request: request}
	ctx, cancel := context.WithTimeout(ctx, answerTime)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, at, bytes.NewReader(request))
	if err != nil {
		return c, atelier.Errorf(atelier.Invalid, "%w", err)
	}
	req.Header.Set("Content-Type", "application/json")
	if r.key != "" {
		req.Header.Set("Authorization", "Bearer "+r.key)
	}
	res, err := http.DefaultClient.Do(req)
	if err != nil {
		return c, atelier.Errorf(atelier.Unavailable, "the reference does not answer: %w", err)
	}
	body, err := io.ReadAll(io.LimitReader(res.Body, atelier.MaxGoldenSize))
	if err := errors.Join(err, res.Body.Close()); err != nil {
		return c, atelier.Errorf(atelier.Unavailable, "the reference's answer broke off: %w", err)
	}
	if res.StatusCode != http.StatusOK {
		return c, atelier.Errorf(atelier.Invalid, "%s answered %s to input %q: %.500s", at, res.Status, c.Name, body)
	}
	if r.score {
		if c.Response = body; !json.Valid(body) {
			return c, atelier.Errorf(atelier.Invalid, "%s answered no JSON to input %q: %.500s", at, c.Name, body)
		}
		return c, nil
	}
	var answer struct {
		Outputs []json.RawMessage `json:"outputs"`
	}
	if err := json.Unmarshal(body, &answer); err != nil || len(answer.Outputs) == 0 {
		return c, atelier.Errorf(atelier.Invalid, "%s answered no outputs to input %q: %.500s", at, c.Name, body)
	}
	c.Response, err = json.Marshal(answer)
	return c, err
}

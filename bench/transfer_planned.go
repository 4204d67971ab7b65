package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"net/http"
	"time"
)

// offPlan is how far the bytes may be from what the plan said, as a part of them.
const offPlan = 0.03

// planned returns the bytes that `atelier deploy --plan` says would come over the wire.
func (w *world) planned(ctx context.Context, args ...string) (int64, error) {
	out, err := w.command(ctx, "atelier", append(append([]string{"deploy"}, args...), "--plan", "-o", "json")...)
	if err != nil {
		return 0, err
	}
	var plan struct {
		Wire    int64 `json:"wire_bytes"`
		Refused int
	}
	if err := json.Unmarshal(out, &plan); err != nil {
		return 0, err
	}
	if plan.Wire == 0 || plan.Refused > 0 {
		return 0, fmt.Errorf("the plan is of no use: %s", out)
	}
	return plan.Wire, nil
}

// received returns the bytes that a deployment's only device says to have received for
// the version that is deployed, or prefetched.
func (w *world) received(ctx context.Context, deployment string, prefetched bool) (int64, error) {
	for deadline := time.Now().Add(time.Minute); time.Now().Before(deadline); {
		var page struct {
			Items []struct {
				Received int64 `json:"received_bytes"`
				Staged   *struct {
					State    string
					Received int64 `json:"received_bytes"`
				}
			}
		}
		if err := w.rest(ctx, http.MethodGet, "/deployments/"+deployment+"/devices", "", nil, &page); err != nil {
			return 0, err
		}
		if len(page.Items) != 1 {
			return 0, fmt.Errorf("deployment %s is for %d devices, expected was one", deployment, len(page.Items))
		}
		one := page.Items[0]
		switch {
		case !prefetched && one.Received > 0:
			return one.Received, nil
		case prefetched && one.Staged != nil && one.Staged.State == "Staged":
			return one.Staged.Received, nil
		}
		if err := pause(ctx, 100*time.Millisecond); err != nil {
			return 0, err
		}
	}
	return 0, errors.New("the device does not say what it received")
}

// off returns how far what was received is from what was planned, as a part of that.
func off(planned, received int64) float64 {
	return math.Abs(float64(received-planned)) / float64(planned)
}

// offFigure is the figure of what each case was off its plan; all of them have to meet
// the target, so that its value is the worst.
func offFigure(of string, all []float64) Figure {
	f := lower("bytes received, off what the plan said, the worst of "+of, "of the plan", all)
	f.Value = f.Max
	return f.want(offPlan)
}

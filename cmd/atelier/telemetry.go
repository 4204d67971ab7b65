package main

import (
	"encoding/json"
	"fmt"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"

	atelier "github.com/atelier-edge/atelier"
	"github.com/atelier-edge/atelier/hub/client"
)

func (a *app) telemetryCommand() *cobra.Command {
	var since, step time.Duration
	query := &cobra.Command{
		Use: "query PROMQL", Short: "Ask the workspace's telemetry in PromQL", Args: exactly(1),
		Example: `  atelier telemetry query 'sum by (endpoint) (rate(atelier_endpoint_requests_total[5m]))'
  atelier telemetry query system_memory_usage_bytes --since 1h --step 1m`,
		RunE: func(cmd *cobra.Command, args []string) error {
			cl, ws, err := a.open()
			if err != nil {
				return err
			}
			var q client.Query
			if since > 0 {
				now := time.Now()
				q, err = cl.QueryRange(cmd.Context(), ws, args[0], now.Add(-since), now, step)
			} else {
				q, err = cl.QueryInstant(cmd.Context(), ws, args[0], time.Time{})
			}
			if err != nil {
				return err
			}
			if a.output != "table" {
				return a.print(q, nil)
			}
			t, err := queryTable(q)
			if err != nil {
				return err
			}
			return t.write(a.out)
		},
	}
	query.Flags().DurationVar(&since, "since", 0, "ask over this long until now, instead of once")
	query.Flags().DurationVar(&step, "step", time.Minute, "distance between the answers with --since")
	metrics := &cobra.Command{
		Use: "metrics", Short: "List the metrics that devices have reported", Args: exactly(0),
		RunE: func(cmd *cobra.Command, _ []string) error {
			cl, ws, err := a.open()
			if err != nil {
				return err
			}
			names, err := cl.LabelValues(cmd.Context(), ws, "__name__")
			if err != nil {
				return err
			}
			return a.print(names, func() table {
				t := table{}
				for _, n := range names {
					t.add(n)
				}
				if len(names) == 0 {
					t.note = "Nothing was reported yet."
				}
				return t
			})
		},
	}
	return group("telemetry", "Ask what devices and endpoints reported", query, metrics)
}

// sample is one value of an answer as Prometheus writes it: [seconds, "value"].
type sample [2]json.RawMessage

func (s sample) value() string { return strings.Trim(string(s[1]), `"`) }

func (s sample) time() string {
	at, err := strconv.ParseFloat(string(s[0]), 64)
	if err != nil {
		return string(s[0])
	}
	return time.UnixMilli(int64(at * 1000)).Local().Format("15:04:05")
}

func queryTable(q client.Query) (table, error) {
	odd := func(err error) (table, error) {
		return table{}, atelier.Errorf(atelier.Internal, "the answer is not what was expected: %w", err)
	}
	t := table{}
	switch q.Type {
	case "scalar", "string":
		var s sample
		if err := json.Unmarshal(q.Result, &s); err != nil {
			return odd(err)
		}
		t.add(s.value())
	default: // "vector" and "matrix"
		var series []struct {
			Metric map[string]string
			Value  sample
			Values []sample
		}
		if err := json.Unmarshal(q.Result, &series); err != nil {
			return odd(err)
		}
		for _, s := range series {
			if q.Type == "vector" {
				t.add(metricName(s.Metric), s.Value.value())
			}
			for _, v := range s.Values {
				t.add(metricName(s.Metric), v.time(), v.value())
			}
		}
	}
	if len(t.rows) == 0 {
		t.note = "Nothing matches (yet: devices report every 15 seconds); 'atelier telemetry metrics' lists what there is."
	}
	return t, nil
}

func metricName(labels map[string]string) string {
	var pairs []string
	for _, k := range sortedKeys(labels) {
		if k != "__name__" {
			pairs = append(pairs, fmt.Sprintf("%s=%q", k, labels[k]))
		}
	}
	name := labels["__name__"]
	if len(pairs) > 0 || name == "" {
		name += "{" + strings.Join(pairs, ", ") + "}"
	}
	return name
}

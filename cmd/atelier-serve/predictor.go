package main

import (
	"context"
	"errors"
	"flag"
	"log/slog"
	"net/http"
	"os"
	"path/filepath"

	atelier "github.com/atelier-edge/atelier"
	"github.com/atelier-edge/atelier/internal/mlflow"
	"github.com/atelier-edge/atelier/serving"
	"github.com/atelier-edge/atelier/serving/python"
)

// predictorConfig names a model that is served in Python without a script.
type predictorConfig struct{ mlflow, pickle string }

func (c *predictorConfig) flags(flags *flag.FlagSet) {
	flags.StringVar(&c.mlflow, "mlflow", "", "serve this MLflow model, a `DIRECTORY`, in place of an ONNX file; needs --python")
	flags.StringVar(&c.pickle, "pickle", "", "serve the estimator that joblib or pickle wrote into this `FILE`, in place of an ONNX file; needs --python")
}

func (c *predictorConfig) given() bool { return c.mlflow != "" || c.pickle != "" }

func (c *predictorConfig) check(s *scriptConfig) error {
	switch {
	case c.mlflow != "" && c.pickle != "" || s.script != "":
		return errors.New("--mlflow, --pickle and --script came together, one of them was expected")
	case s.python == "":
		return errors.New("--mlflow and --pickle need --python; see atelier-serve --help")
	}
	return s.checkWorkers()
}

// source returns what the workers load.
func (c *predictorConfig) source() (*python.Source, error) {
	if c.pickle != "" {
		path, err := filepath.Abs(c.pickle)
		return &python.Source{Kind: python.KindPickle, Path: path}, err
	}
	dir, err := filepath.Abs(c.mlflow)
	if err != nil {
		return nil, err
	}
	text, err := os.ReadFile(filepath.Join(dir, mlflow.File))
	if err != nil {
		return nil, err
	}
	m, err := mlflow.Parse(text)
	if err != nil {
		return nil, err
	}
	return &python.Source{
		Kind: python.KindMLflow, Path: dir, Inputs: m.Inputs, Outputs: m.Outputs, Columns: m.Columns, Datetimes: m.Datetimes, Binaries: m.Binaries,
	}, nil
}

// loadPredictor loads the model in Python processes. failed is closed when none of
// them is left and none can be started; reason then says why.
func loadPredictor(ctx context.Context, c config, log *slog.Logger) (m *serving.Model, failed <-chan struct{}, reason func() error, err error) {
	source, err := c.predictor.source()
	if err != nil {
		return nil, nil, nil, &exitError{exitModel, err}
	}
	s := c.script
	if s.workers == 0 {
		s.workers = processors()
	}
	pool, err := python.Start(ctx, python.Options{
		Python: s.python, Predictor: source, Workers: s.workers, Memory: s.memory, Requests: s.requests,
		Deadline: c.deadline, InitTimeout: s.initTimeout, Log: log,
	})
	if err != nil {
		return nil, nil, nil, predictorExit(err)
	}
	engine, err := python.NewPredictor(pool)
	if err != nil {
		pool.Close()
		return nil, nil, nil, &exitError{exitModel, err}
	}
	model := serving.NewModel(c.name, c.version, engine, 0) // the pool has a queue of its own
	if err := prove(ctx, c, model, log); err != nil {
		return nil, nil, nil, errors.Join(err, model.Close())
	}
	log.Info("loaded", "platform", engine.Platform(), "workers", s.workers)
	return model, pool.Failed(), func() error { return predictorExit(pool.Reason()) }, nil
}

// predictorExit gives err its exit code, and makes one line of it.
func predictorExit(err error) error {
	var script *python.ScriptError
	if errors.As(err, &script) {
		return &exitError{exitModel, errors.New(oneLine(err.Error()))}
	}
	return &exitError{exitRuntime, err}
}

// withIDs has what a model prints logged under its request's id.
func withIDs(h http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		h.ServeHTTP(w, r.WithContext(python.WithID(r.Context(), r.Header.Get(atelier.HeaderRequestID))))
	})
}

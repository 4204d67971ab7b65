package telemetry_test

import (
	"context"
	"fmt"
	"log/slog"
	"sync/atomic"
	"testing"
	"time"

	atelier "github.com/atelier-edge/atelier"
	"github.com/atelier-edge/atelier/hub/telemetry"
	"github.com/atelier-edge/atelier/internal/otlp"
)

// BenchmarkIngest stores frames of 80 samples from many devices at once, each
// acknowledged when it is on disk.
func BenchmarkIngest(b *testing.B) {
	for _, devices := range []int{1, 16, 128} {
		b.Run(fmt.Sprintf("devices=%d", devices), func(b *testing.B) {
			s, err := telemetry.Open(telemetry.Config{Dir: b.TempDir(), Log: slog.New(slog.DiscardHandler)})
			if err != nil {
				b.Fatal(err)
			}
			defer s.Close()
			begin := time.Now()
			var next atomic.Int64
			b.SetParallelism((devices + 1) / 2)
			b.RunParallel(func(pb *testing.PB) {
				n := next.Add(1)
				dev := atelier.Device{Meta: atelier.Meta{ID: atelier.NewID(), Name: fmt.Sprint("device-", n)}}
				stream := atelier.NewID()
				for sequence := uint64(1); pb.Next(); sequence++ {
					at := begin.Add(time.Duration(sequence) * time.Millisecond)
					metrics := make([]otlp.Metric, 80)
					for i := range metrics {
						metrics[i] = gauge(fmt.Sprint("metric.", i), at, float64(sequence))
					}
					f := newFrame(stream, sequence, at, metrics...)
					f.Sent.Wall, f.Taken.Wall = time.Now(), time.Now()
					f.Sent.BootID, f.Taken.BootID = "", ""
					if _, err := s.Ingest(context.Background(), wsA, dev, f.bytes(b)); err != nil {
						b.Error(err)
						return
					}
				}
			})
			b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "frames/s")
		})
	}
}

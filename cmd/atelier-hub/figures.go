package main

import (
	"github.com/prometheus/client_golang/prometheus"

	"github.com/atelier-edge/atelier/hub/difference"
)

// figures registers what the hub tells of the content that it sends, at /metrics.
func (h *hub) figures(r *prometheus.Registry) {
	count := func(name, help string, labels prometheus.Labels, value func() uint64) {
		r.MustRegister(prometheus.NewCounterFunc(prometheus.CounterOpts{Name: name, Help: help, ConstLabels: labels},
			func() float64 { return float64(value()) }))
	}
	const sent = "atelier_content_sent_bytes_total"
	const sentHelp = "Bytes of content that were sent to devices, by the way: whole as it is, difference as a difference to what the device has."
	count(sent, sentHelp, prometheus.Labels{"way": "whole"}, func() uint64 { n, _ := h.fleet.Sent(); return n })
	count(sent, sentHelp, prometheus.Labels{"way": "difference"}, func() uint64 { _, n := h.fleet.Sent(); return n })
	const layers = "atelier_image_bytes_total"
	const layersHelp = "Bytes of images' layers that tools moved, by the way: push into the container registries, pull out of them."
	count(layers, layersHelp, prometheus.Labels{"way": "push"}, func() uint64 { return h.images.Stats().Received })
	count(layers, layersHelp, prometheus.Labels{"way": "pull"}, func() uint64 { return h.images.Stats().Sent })
	count("atelier_images_pushed_total", "Manifests that were pushed into the container registries.", nil,
		func() uint64 { return h.images.Stats().Pushed })
	r.MustRegister(prometheus.NewGaugeFunc(prometheus.GaugeOpts{Name: "atelier_image_uploads", Help: "Uploads of layers that are open."},
		func() float64 { return float64(h.images.Uploads()) }))
	if h.differences == nil {
		return
	}
	for outcome, of := range map[string]func(difference.Stats) uint64{
		"made":    func(s difference.Stats) uint64 { return s.Made },
		"useless": func(s difference.Stats) uint64 { return s.Useless },
		"failed":  func(s difference.Stats) uint64 { return s.Failed },
	} {
		count("atelier_differences_total", "Differences between contents, by what became of them: useless ones would have saved too little.",
			prometheus.Labels{"outcome": outcome}, func() uint64 { return of(h.differences.Stats()) })
	}
	count("atelier_differences_found_total", "Times that a difference was there when it was looked for.", nil,
		func() uint64 { return h.differences.Stats().Found })
	r.MustRegister(prometheus.NewGaugeFunc(prometheus.GaugeOpts{Name: "atelier_differences_bytes", Help: "Bytes that differences take on disk."},
		func() float64 { return float64(h.differences.Stats().Bytes) }))
}

// Package relay publishes committed events: one process leads, and reads the outbox.
package relay

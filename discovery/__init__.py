"""Engine of the discovery loop: campaign, hull, energy scales, store, configuration and command line."""

//! Which executor runs which module.

use std::sync::Arc;

use async_trait::async_trait;
use ion_csi::ticket::TicketKey;
use ion_jobs::pipeline::{ExecutorKind, Module};
use ion_model::errors::chain;
use ion_model::record::JobRecord;
use ion_plane::node::Node;
use tokio::sync::{OnceCell, watch};

use super::kubernetes::{Kubernetes, KubernetesError};
use super::local::LocalExecutor;
use super::{Ended, Executor, Fate, OutputWatcher, Start, Stop};

/// What a dispatcher needs for jobs that are pods.
#[derive(Clone, Debug)]
pub struct ClusterSettings {
    /// Signs the pods' tokens; in words why there is none.
    pub key: Result<TicketKey, String>,
    /// Where pods run; none: the namespace of the kubeconfig, or the dispatcher's own.
    pub namespace: Option<String>,
}

/// The executors of one dispatcher.
#[derive(Debug)]
pub struct Executors {
    node: Arc<Node>,
    local: Arc<LocalExecutor>,
    settings: ClusterSettings,
    output: Option<Arc<dyn OutputWatcher>>,
    /// Once some module asks for it.
    cluster: OnceCell<Kubernetes>,
}

impl Executors {
    /// Of this machine, and of a cluster when it is needed.
    pub fn new(
        node: Arc<Node>,
        local: Arc<LocalExecutor>,
        settings: ClusterSettings,
        output: Option<Arc<dyn OutputWatcher>>,
    ) -> Self {
        Self { node, local, settings, output, cluster: OnceCell::new() }
    }

    /// The cluster.
    ///
    /// # Errors
    /// When none is configured.
    pub async fn cluster(&self) -> Result<&Kubernetes, KubernetesError> {
        let make = || async {
            let key = self.settings.key.clone().map_err(KubernetesError::Key)?;
            let namespace = self.settings.namespace.clone();
            Kubernetes::new(self.node.clone(), key, namespace, self.output.clone()).await
        };
        self.cluster.get_or_try_init(make).await
    }
}

#[async_trait]
impl Executor for Executors {
    async fn run(&self, start: Start, stop: watch::Receiver<Option<Stop>>) -> Fate {
        match start.module.executor {
            ExecutorKind::Local | ExecutorKind::Container => {
                Fate::Ended(self.local.run_here(start, stop).await)
            }
            ExecutorKind::Kubernetes => match self.cluster().await {
                Ok(cluster) => cluster.run(start, stop).await,
                Err(error) => Fate::Ended(Ended::failed(chain(&error))),
            },
        }
    }

    async fn settled(&self, module: &Module, job: &JobRecord) {
        if module.executor == ExecutorKind::Kubernetes
            && let Some(cluster) = self.cluster.get()
        {
            cluster.settled(module, job).await;
        }
    }
}

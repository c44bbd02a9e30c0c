"""Pages for those who come from another library leave none of its names out."""

import pathlib
import re

import pytest

PAGE = pathlib.Path(__file__).parents[2] / "docs" / "start" / "from_pytorch_metric_learning.md"

# All public classes of PyTorch Metric Learning 2.9.0, by package.
PYTORCH_METRIC_LEARNING = {
    "losses": """AngularLoss ArcFaceLoss BaseLossWrapper BaseMetricLossFunction CircleLoss ContrastiveLoss CosFaceLoss
        CrossBatchMemory DynamicSoftMarginLoss EmbeddingRegularizerMixin FastAPLoss GeneralizedLiftedStructureLoss
        GenericPairLoss HistogramLoss InstanceLoss IntraPairVarianceLoss LargeMarginSoftmaxLoss LiftedStructureLoss
        ManifoldLoss MarginLoss MultiSimilarityLoss MultipleLosses NCALoss NPairsLoss NTXentLoss NormalizedSoftmaxLoss
        P2SGradLoss PNPLoss ProxyAnchorLoss ProxyNCALoss RankedListLoss SelfSupervisedLoss
        SignalToNoiseRatioContrastiveLoss SmoothAPLoss SoftTripleLoss SphereFaceLoss SubCenterArcFaceLoss SupConLoss
        ThresholdConsistentMarginLoss TripletMarginLoss TupletMarginLoss VICRegLoss WeightRegularizerMixin""",
    "miners": """AngularMiner BaseMiner BatchEasyHardMiner BatchHardMiner DistanceWeightedMiner
        EmbeddingsAlreadyPackagedAsTriplets HDCMiner MultiSimilarityMiner PairMarginMiner TripletMarginMiner
        UniformHistogramMiner""",
    "distances": "BaseDistance BatchedDistance CosineSimilarity DotProductSimilarity LpDistance SNRDistance",
    "reducers": """AvgNonZeroReducer BaseReducer ClassWeightedReducer DivisorReducer DoNothingReducer MeanReducer
        MultipleReducers PerAnchorReducer SumReducer ThresholdReducer""",
    "regularizers": """BaseRegularizer CenterInvariantRegularizer LpRegularizer RegularFaceRegularizer
        SparseCentersRegularizer ZeroMeanRegularizer""",
    "samplers": "FixedSetOfTriplets HierarchicalSampler MPerClassSampler TuplesToWeightsSampler",
    "testers": """BaseTester GlobalEmbeddingSpaceTester GlobalTwoStreamEmbeddingSpaceTester
        WithSameParentLabelTester""",
    "trainers": """BaseTrainer CascadedEmbeddings DeepAdversarialMetricLearning MetricLossOnly TrainWithClassifier
        TwoStreamMetricLoss""",
    "datasets": "BaseDataset CUB Cars196 INaturalist2018 StanfordOnlineProducts",
    "utils": """AccuracyCalculator CustomKNN DistributedLossWrapper DistributedMinerWrapper EmptyContainer FaissKMeans
        FaissKNN HookContainer InferenceModel LossTracker MatchFinder ModuleWithRecords""",
}


@pytest.mark.parametrize("package", PYTORCH_METRIC_LEARNING)
def test_every_class_of_pytorch_metric_learning_is_on_its_page(package):
    text = PAGE.read_text()
    missing = [name for name in PYTORCH_METRIC_LEARNING[package].split() if not re.search(rf"`{name}`", text)]
    assert not missing
